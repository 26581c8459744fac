"""The long work of an open pool: repair, scrub, balancing, emptying of disks; started, stopped,
resumed and told of.

The engine of each is in `dwfs.stripe` and knows nothing of people. What is here gives it a life: it
starts at the mount and after each change of a disk, stops at once when the pool closes, goes on at
the next mount where it was (`jobs`), and answers administrators who start, stop or wait for it.

Waiting is only looking: a client that goes away leaves the work as it is.
"""
