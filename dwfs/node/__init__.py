"""One process's share of a pool: everything below is composed here, and only here.

`create_pool` makes a pool, `open_pool` opens one and runs its background work, `ControlServer`
lets administrators talk to it. Commands that find no owner read what needs no key with
`survey_pool`.
"""
