import itertools
import os

import pytest
import torch
from scipy import stats

from genfed.core.errors import GenfedError
from genfed.secure_aggregation.crypto import (
    PRIME,
    agree_key,
    expand_mask,
    new_key_pair,
    recover_secret,
    seal,
    split_secret,
    unseal,
)


def test_both_of_a_pair_agree_and_nobody_else() -> None:
    (a, public_a), (b, public_b), (c, _) = new_key_pair(), new_key_pair(), new_key_pair()
    assert agree_key(a, public_b, "mask") == agree_key(b, public_a, "mask")
    assert len({agree_key(a, public_b, "mask"), agree_key(a, public_b, "seal"), agree_key(c, public_b, "mask")}) == 3


def test_a_sealed_message_opens_with_its_key_alone() -> None:
    key, message = os.urandom(32), b"a share"
    sealed = seal(key, message)
    assert unseal(key, sealed) == message
    assert seal(key, message) != sealed
    for wrong in (sealed[:-1], sealed[:-1] + bytes([sealed[-1] ^ 1]), b"", bytes(40)):
        with pytest.raises(GenfedError, match="changed on its way"):
            unseal(key, wrong)
    with pytest.raises(GenfedError, match="changed on its way"):
        unseal(os.urandom(32), sealed)


def test_any_three_of_five_shares_give_the_secret_back() -> None:
    secret = os.urandom(32)
    shares = split_secret(secret, [4, 0, 7, 9, 30], 3)
    for some in itertools.combinations(shares, 3):
        assert recover_secret({holder: shares[holder] for holder in some}, 3) == secret
    assert recover_secret(shares, 3) == secret
    with pytest.raises(GenfedError, match="2 clients gave their share of a secret, and 3 are needed"):
        recover_secret(dict(itertools.islice(shares.items(), 2)), 3)
    other = split_secret(os.urandom(32), [4, 0, 7, 9, 30], 3)
    with pytest.raises(GenfedError, match="do not fit"):
        recover_secret({4: shares[4], 0: shares[0], 7: other[7]}, 3)


def test_a_polynomial_by_hand() -> None:
    # 5 + 2·x at x = 1 and 3: the line through (1, 7) and (3, 11)
    points = {0: (7).to_bytes(66, "big"), 2: (11).to_bytes(66, "big")}
    assert int.from_bytes(recover_secret(points, 2), "big") == 5
    assert PRIME % 4 == 3  # 2⁵²¹ − 1


def test_fewer_shares_than_the_threshold_tell_nothing() -> None:
    """Leading bits of one share are uniform, whatever the secret is."""
    drawn = [split_secret(bytes(32), [0, 1], 2)[0] for _ in range(2000)]
    counts = torch.bincount(torch.tensor([int.from_bytes(d, "big") >> 517 for d in drawn]), minlength=16)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-6


def test_a_mask_is_the_key_stream_of_its_seed() -> None:
    seed = bytes(range(32))
    assert torch.equal(expand_mask(seed, 10), expand_mask(seed, 100)[:10])
    assert not torch.equal(expand_mask(seed, 10), expand_mask(bytes(32), 10))
    assert expand_mask(seed, 0).shape == (0,)
    # RFC 8439's key stream for a key and nonce of 0 begins 76 b8 e0 ad a0 f1 3d 90
    assert expand_mask(bytes(32), 1).numpy().tobytes().hex() == "76b8e0ada0f13d90"
