"""Selection of the most informative candidates, on arrays: SIFT and the rules it is compared with."""
