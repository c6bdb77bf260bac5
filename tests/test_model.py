"""Random sequences of all that can be done to nodes, and happen to them: model.py runs more and shrinks what fails."""

import unittest

from . import model

SEQUENCES, STEPS = 300, 30
FIRST = 1000                     # seed


class Sequences(unittest.TestCase):
    def test_model(self):
        seeds = range(FIRST, FIRST + SEQUENCES)
        failed = model.run_once(seeds, {seed: model.random_steps(seed, STEPS) for seed in seeds})
        if failed:
            self.fail('%d of %d failed; python3 -m tests.model --seed %d --sequences 1 --shrink\n%s' % (
                len(failed), SEQUENCES, failed[0].seed, '\n'.join(map(model.report, failed[:3]))))
