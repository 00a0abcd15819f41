"""The primitives of secure aggregation: key agreement, sealed messages, masks, secret sharing, and signatures.

Keys and masks come from the operating system, never from a run's seed.
"""

import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genfed.core.errors import GenfedError

try:
    from cryptography.exceptions import InvalidSignature, InvalidTag, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF
except ImportError:  # an extra, which checks ask for before anything is run
    pass

PRIME = 2**521 - 1
"""Modulus of the polynomials whose points are shares; a secret is far smaller."""
SHARE_BYTES = 66
"""Bytes of one share."""
SEALING_BYTES = 28
"""Bytes that `seal` adds to a message."""


class MisfitSharesError(GenfedError):
    """Shares that are not of one secret."""


def new_key_pair() -> tuple[bytes, bytes]:
    """Returns a new private and public key, 32 bytes each."""
    key = X25519PrivateKey.generate()
    return key.private_bytes_raw(), key.public_key().public_bytes_raw()


def public_key_of(private: bytes) -> bytes:
    """Returns the public key of a private one, 32 bytes each."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agree_key(private: bytes, public: bytes, purpose: str) -> bytes:
    """Returns 32 bytes that only the owners of two key pairs can derive, the same for both.

    Args:
        private: the private key of one owner.
        public: the public key of the other.
        purpose: the use of the bytes; another purpose gives other bytes.

    Raises:
        GenfedError: it is no public key, or one with which anyone can derive the bytes.
    """
    try:
        shared = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise GenfedError("a public key cannot be used") from None
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
    """Returns shares of a secret by holder: any `threshold` of them recover it, fewer reveal nothing (Shamir 1979).

    Raises:
        GenfedError: a holder is not in [0, 2³²), where no share is the secret and no two are the same, or comes twice.
    """
    if len(set(holders)) < len(holders) or not all(0 <= holder < 2**32 for holder in holders):
        raise GenfedError("holders of shares are different numbers from 0 on")
    coefficients = [int.from_bytes(secret, "big")] + [_below_prime() for _ in range(threshold - 1)]

    def at(x: int) -> int:
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * x + coefficient) % PRIME
        return value

    return {holder: at(holder + 1).to_bytes(SHARE_BYTES, "big") for holder in holders}


def _below_prime() -> int:
    while (drawn := int.from_bytes(os.urandom(SHARE_BYTES), "big") >> 7) >= PRIME:
        pass
    return drawn


def recover_secret(shares: Mapping[int, bytes], threshold: int, size: int = 32) -> bytes:
    """Returns the secret of `size` bytes.

    Raises:
        MisfitSharesError: they are not of one secret of that size.
        GenfedError: there are fewer shares than the threshold.
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
        raise MisfitSharesError("the shares of a secret do not fit one another")
    return secret.to_bytes(size, "big")


def share_digest(share: bytes) -> str:
    """Returns a fingerprint of a share in hexadecimal, by which anyone can check it. It reveals nothing of the share,
    which is one of 2⁵²¹ values.
    """
    return hashlib.sha256(share).hexdigest()


@dataclass(frozen=True)
class Signer:
    """A client's signing key, and those of other clients that it trusts."""

    public: str
    """Public key in hexadecimal, as X.509 encodes it."""
    sign: Callable[[bytes], str]
    """Returns the signature of a message in hexadecimal."""
    trusted: frozenset[str] | None = None
    """Public keys of the others. None: any that the server passes on."""


def new_signing_key() -> str:
    """Returns a new private key for `signer_of`, in hexadecimal."""
    return Ed25519PrivateKey.generate().private_bytes_raw().hex()


def signer_of(private: str) -> Signer:
    """Returns what signs with a key of `new_signing_key`."""
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(private))
    return Signer(_encode_public(key.public_key()), lambda message: key.sign(message).hex())


def read_signer(private: bytes, trusted: frozenset[str] | None) -> Signer:
    """Returns what signs with a private P-384 key.

    Args:
        private: the key, as OpenSSH or PKCS #8 has it.
        trusted: the public keys of the others, as `read_public_key` returns them. None: any.

    Raises:
        GenfedError: it is no such key.
    """
    load = serialization.load_ssh_private_key if b"OPENSSH" in private else serialization.load_pem_private_key
    try:
        key = load(private, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise GenfedError("not a private key without a password") from None
    if not (isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP384R1)):
        raise GenfedError("not a P-384 key")
    signing = key
    return Signer(
        _encode_public(signing.public_key()),
        lambda message: signing.sign(message, ec.ECDSA(hashes.SHA384())).hex(),
        trusted,
    )


def read_public_key(text: bytes) -> str:
    """Returns a public P-384 key of a NAME.pub file as signers write it.

    Raises:
        GenfedError: it is no such key.
    """
    try:
        key = serialization.load_ssh_public_key(text)
    except (ValueError, UnsupportedAlgorithm):
        raise GenfedError("not a public key") from None
    if not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1)):
        raise GenfedError("not a P-384 key")
    return _encode_public(key)


def is_signed(public: str, signature: str, message: bytes) -> bool:
    """Returns whether a signature of the message was made with the private key of a public one."""
    try:
        key = _decode_public(public)
        if isinstance(key, Ed25519PublicKey):
            key.verify(bytes.fromhex(signature), message)
        else:
            key.verify(bytes.fromhex(signature), message, ec.ECDSA(hashes.SHA384()))
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True


@functools.lru_cache(maxsize=4096)
def _decode_public(public: str) -> "Ed25519PublicKey | ec.EllipticCurvePublicKey":
    """Returns a public key. One key has one encoding, so that it cannot pass for two.

    Raises:
        ValueError: it is no key that signs here.
    """
    if len(public) > 512:
        raise ValueError("too long")
    key = serialization.load_der_public_key(bytes.fromhex(public))
    curve = key.curve if isinstance(key, ec.EllipticCurvePublicKey) else None
    if isinstance(key, Ed25519PublicKey | ec.EllipticCurvePublicKey) and (
        (curve is None or isinstance(curve, ec.SECP384R1)) and _encode_public(key) == public
    ):
        return key
    raise ValueError("another kind of key, or another encoding")


def _encode_public(key: "Ed25519PublicKey | ec.EllipticCurvePublicKey") -> str:
    der = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(*der).hex()
