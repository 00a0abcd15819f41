"""Names of settings that changed in 0.2. An old name is refused with its new one; this file goes in 0.3."""

SETTINGS: dict[str, dict[str, str]] = {
    "Config": {
        "beside": "baselines",
        "quality": "metrics",
        "secure": "secure_aggregation",
        "client_privacy": 'privacy with kind = "dp_fedavg"',
    },
    "Federation": {"sample": "client_fraction", "examples": "max_examples"},
    "Evaluation": {"part": "split"},
    "SecureAggregation": {"neighbours": "neighbors"},
    "DPFedAvg": {"clip": "clip_norm"},
    "Training": {"optimiser": "optimizer"},
    "Foundation": {"guidance": "guidance_scale", "negative": "negative_prompt"},
    "ServerSynthesis": {
        "images": "images_per_condition",
        "learning": "student_training",
        "learning_rounds": "student_rounds",
        "rounds": "finetune_rounds",
        "training": "client_training",
    },
    "FedLMG": {
        "guidance": "classifier_guidance",
        "aggregation": "supervision",
        "kept": "consensus_fraction",
    },
    "ClassifierGuidance": {"edits": "noise_edits", "views": "augmented_views"},
    "DDPM": {"guidance": "guidance_scale"},
    "CVAE": {"latent": "latent_dim"},
    "DCGAN": {"latent": "latent_dim"},
    "DataFreeDistillation": {"latent": "latent_dim", "remembered": "replay_batches"},
    "FedGen": {"noise": "noise_dim", "hidden": "hidden_dim"},
    "DigitDomains": {"looks": "domains"},
}
"""By class of settings, with its subclasses: old name → new name."""

KINDS = {"looks": "digit_domains", "centred_clipping": "centered_clipping"}
"""Old name → new name of what a `kind` names."""


def find_new_setting(cls: type, old: str) -> str | None:
    """Returns what the setting `old` of a class is called now. None: it was not renamed."""
    return next((SETTINGS[c.__name__][old] for c in cls.__mro__ if old in SETTINGS.get(c.__name__, {})), None)
