// answer_pairs
