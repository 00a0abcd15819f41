"""The primitives of secure aggregation: key agreement, sealed messages, masks, and secret sharing.

Keys and masks come from the operating system, never from a run's seed.
"""

import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from genfed.core.errors import GenfedError

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF
except ImportError:  # an extra, which checks ask for before anything is run
    pass

PRIME = 2**521 - 1
"""Modulus of the polynomials whose points are shares; a secret is far smaller."""
_SHARE = 66  # bytes of one


def new_key_pair() -> tuple[bytes, bytes]:
    """Returns a new private and public key, 32 bytes each."""
    key = X25519PrivateKey.generate()
    return key.private_bytes_raw(), key.public_key().public_bytes_raw()


def agree_key(private: bytes, public: bytes, purpose: str) -> bytes:
    """Returns 32 bytes that only the owners of two key pairs can derive, the same for both.

    Args:
        private: the private key of one owner.
        public: the public key of the other.
        purpose: the use of the bytes; another purpose gives other bytes.
    """
    shared = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    return HKDF(hashes.SHA256(), 32, None, purpose.encode()).derive(shared)


def seal(key: bytes, message: bytes) -> bytes:
    """Returns a message encrypted and authenticated with a key of 32 bytes."""
    nonce = os.urandom(12)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, message, None)


def unseal(key: bytes, sealed: bytes) -> bytes:
    """Returns the message that `seal` was given.

    Raises:
        GenfedError: it was not sealed with this key, or was changed.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(sealed[:12], sealed[12:], None)
    except (InvalidTag, ValueError):
        raise GenfedError("a sealed share was changed on its way") from None


def expand_mask(seed: bytes, size: int) -> Tensor:
    """Returns numbers that are uniform modulo 2⁶⁴ to any party without the seed (32 bytes), int64 [size]. A seed gives
    one mask, so it must be used once.
    """
    stream = Cipher(algorithms.ChaCha20(seed, bytes(16)), None).encryptor()
    drawn = bytearray(stream.update(bytes(8 * size)))
    return torch.frombuffer(drawn, dtype=torch.int64) if size else torch.empty(0, dtype=torch.int64)


def split_secret(secret: bytes, holders: Sequence[int], threshold: int) -> dict[int, bytes]:
    """Returns shares of a secret by holder: any `threshold` of them recover it, fewer reveal nothing (Shamir 1979)."""
    coefficients = [int.from_bytes(secret, "big")] + [_below_prime() for _ in range(threshold - 1)]

    def at(x: int) -> int:
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * x + coefficient) % PRIME
        return value

    return {holder: at(holder + 1).to_bytes(_SHARE, "big") for holder in holders}


def _below_prime() -> int:
    while (drawn := int.from_bytes(os.urandom(_SHARE), "big") >> 7) >= PRIME:
        pass
    return drawn


def recover_secret(shares: Mapping[int, bytes], threshold: int, size: int = 32) -> bytes:
    """Returns the secret of `size` bytes.

    Raises:
        GenfedError: there are fewer shares than the threshold, or they are not of one secret of that size.
    """
    if len(shares) < threshold:
        raise GenfedError(f"{len(shares)} clients gave their share of a secret, and {threshold} are needed")
    points = [(holder + 1, int.from_bytes(value, "big")) for holder, value in sorted(shares.items())[:threshold]]
    secret = 0
    for x, y in points:
        above = below = 1
        for other, _ in points:
            if other != x:
                above, below = above * other % PRIME, below * (other - x) % PRIME
        secret = (secret + y * above * pow(below, -1, PRIME)) % PRIME
    if secret >> (8 * size):
        raise GenfedError("the shares of a secret do not fit one another")
    return secret.to_bytes(size, "big")
