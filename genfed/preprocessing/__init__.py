"""Raw examples as people have them: names, arrays, image files, the scale of pixels, and what is said of them."""
