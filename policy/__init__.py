"""The policy pack: what every plan must hold, one module per topic, one exported constant per policy.

``vocabulary`` names the resource types, ``resources`` reads a resource or a whole plan, ``rule`` makes a check a policy,
``stack_file`` knows the waivers. ``__main__`` puts all of it together, and is the only place that starts the pack.
"""
