"""What secure aggregation is made of: agreed keys, sealed messages, masks, and secrets shared out among clients.

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
except ImportError:  # an extra: who asks for it is told which
    pass

PRIME = 2**521 - 1
"""Shares are points of polynomials modulo this; a secret is smaller by far."""
_SHARE = 66  # bytes of one


def check_cryptography() -> None:
    """Refuses where the primitives are not there.

    Raises:
        GenfedError: the extra is not installed.
    """
    if "X25519PrivateKey" not in globals():
        raise GenfedError('[secure] needs the package cryptography: pip install "genfed[privacy]"')


def new_key_pair() -> tuple[bytes, bytes]:
    """A new private and public key, 32 bytes each."""
    key = X25519PrivateKey.generate()
    return key.private_bytes_raw(), key.public_key().public_bytes_raw()


def agree_key(private: bytes, public: bytes, purpose: str) -> bytes:
    """The 32 bytes that both owners of two key pairs, and nobody else, derive for a purpose."""
    shared = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    return HKDF(hashes.SHA256(), 32, None, purpose.encode()).derive(shared)


def seal(key: bytes, message: bytes) -> bytes:
    """Encrypts and authenticates."""
    nonce = os.urandom(12)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, message, None)


def unseal(key: bytes, sealed: bytes) -> bytes:
    """The inverse of `seal`.

    Raises:
        GenfedError: it was not sealed with this key, or has been changed.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(sealed[:12], sealed[12:], None)
    except (InvalidTag, ValueError):
        raise GenfedError("a sealed share was changed on its way") from None


def expand_mask(seed: bytes, size: int) -> Tensor:
    """Numbers that are uniform modulo 2⁶⁴ to whoever does not have the seed (32 bytes), int64 [size]. One seed gives
    one mask, so a seed serves once.
    """
    stream = Cipher(algorithms.ChaCha20(seed, bytes(16)), None).encryptor()
    drawn = bytearray(stream.update(bytes(8 * size)))
    return torch.frombuffer(drawn, dtype=torch.int64) if size else torch.empty(0, dtype=torch.int64)


def split_secret(secret: bytes, holders: Sequence[int], threshold: int) -> dict[int, bytes]:
    """Shares of a secret by holder: any `threshold` of them give it back, fewer tell nothing (Shamir 1979)."""
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
    """The secret of `size` bytes.

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
