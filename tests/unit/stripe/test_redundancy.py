"""Judging stripes: what each shard is worth, and what is urgent."""

from __future__ import annotations

from dwfs.ports import DiskRole
from dwfs.stripe import ShardState, assess
from dwfs.types import DiskId, Geometry, ShardKey, StripeId, StripeSeal

DISKS = [DiskId(bytes([number]) * 16) for number in range(1, 7)]
NONE = DiskId(b"")
FULL = 4 * 16_384  # one sector in each of four data shards


def seal(length: int = FULL, placement: list[DiskId] | None = None) -> StripeSeal:
    return StripeSeal(
        stripe=StripeId(b"s" * 16),
        salt=b"",
        key_version=1,
        geometry=Geometry(4, 2),
        length=length,
        sector_size=16_384,
        placement=tuple(placement or DISKS),
        summary=(),
    )


def roles(**given: DiskRole) -> dict[DiskId, DiskRole]:
    return {DISKS[int(name[1:])]: role for name, role in given.items()}


def judge(
    one: StripeSeal,
    given: dict[DiskId, DiskRole] | None = None,
    missing: tuple[int, ...] = (),
    bad: tuple[int, ...] = (),
) -> tuple[int, tuple[int, ...], bool, bool, int]:
    health = assess(
        one,
        lambda disk: (given or {}).get(disk, DiskRole.KEEP),
        lambda disk, key: key.number not in missing,
        bad,
    )
    return health.spare, health.needs, health.unreadable, health.lost, health.lacking


def test_whole_stripe_needs_nothing() -> None:
    assert judge(seal()) == (2, (), False, False, 0)


def test_every_kind_of_lack() -> None:
    given = roles(d1=DiskRole.GONE, d2=DiskRole.LEAVE)
    placement = [DISKS[0], DISKS[1], DISKS[2], NONE, DISKS[4], DISKS[5]]
    # 1 lost, 2 leaving, 3 never stored, 4 not in its index, 5 reported.
    assert judge(seal(placement=placement), given, missing=(4,), bad=(5,)) == (
        -2,
        (1, 3, 4, 5, 2),
        True,
        True,
        4,
    )


def test_leaving_shards_cost_no_redundancy() -> None:
    given = roles(d0=DiskRole.LEAVE, d1=DiskRole.LEAVE)
    assert judge(seal(), given) == (2, (0, 1), False, False, 0)


def test_disks_that_are_away_make_other_damage_urgent_and_need_nothing() -> None:
    given = roles(d0=DiskRole.AWAY, d1=DiskRole.AWAY, d2=DiskRole.AWAY)
    assert judge(seal(), given) == (-1, (), True, False, 0)
    # Their indexes can't be asked, and nothing that was said of them counts while they are away.
    assert judge(seal(), given, missing=(0, 1), bad=(0,)) == (-1, (), True, False, 0)


def test_empty_shards_are_never_missed() -> None:
    tiny = seal(100, [DISKS[0], NONE, NONE, NONE, DISKS[4], DISKS[5]])
    assert judge(tiny) == (2, (), False, False, 0)
    assert judge(tiny, roles(d0=DiskRole.GONE, d4=DiskRole.GONE)) == (0, (0, 4), False, False, 2)
    health = assess(tiny, lambda disk: DiskRole.KEEP, lambda disk, key: True)
    assert health.shards[1] is ShardState.EMPTY


def test_index_of_a_lost_disk_is_not_asked() -> None:
    def has(disk: DiskId, key: ShardKey) -> bool:
        assert disk != DISKS[0]
        return True

    gone = roles(d0=DiskRole.GONE)
    assert assess(seal(), lambda d: gone.get(d, DiskRole.KEEP), has).needs == (0,)
