"""The pool's disks while they live: found, watched, judged, added, taken away.

- `survey`: what the disks' headers say, without a key.
- `states`: the table of disk states, and what moves a disk from one to another.
- `listing`: `PoolDisks`, the disks of an open pool, for whoever chooses among them.
- `watch`: probes every disk, notices one that hangs, takes back one that returned.
- `attendance`: did anybody use the disk since we did?
- `membership`: the one owner of every change of the pool header.
- `life_cycle`: what an administrator does to disks of an open pool.

The modules are imported one by one: the foundation of a pool needs the lower ones, the upper ones
need the foundation.
"""
