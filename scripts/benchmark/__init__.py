"""What scripts/bench runs: tapir beside its peers, interleaved, and a report of it.

  machine   commands, namespaces, CPU time; the facts of this machine
  paths     the ways between two pods that are measured, and what builds them
  measure   one sample: a function of a path
  many      a node with up to 500 pods; ADD and DEL
  cases     what is sampled on which paths, and the rows of the table with their limits
  run       the rounds
  summary   medians, spreads, ratios
  text, html  the table on the terminal; the report

Python's standard library only.
"""
