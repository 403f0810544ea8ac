"""Intrinsic sparse structures: LSTM language models whose hidden sizes shrink while they train (arXiv 1709.05027).

What differs from the paper and its official code, beside the size of everything:

- an LSTM of characters of two layers of 128 on a text of this package; theirs 1500 words' units on Penn Treebank;
- AdamW at 6e-3 with a cosine; theirs plain SGD. The lasso is a step of its own behind AdamW's, times its rate, so that
  λ = 3 here is 0.018 a step at most; theirs, λ = 0.00245, is in the loss;
- numbers below 1e-4 become 0 after each step; the code's bound, max(1e-4, 2 · weight decay), is the same without decay;
- a group that is all zeros stays so; theirs can come back;
- dropout keeps 0.9 of the numbers; theirs 0.6;
- recurrent highway networks and the reader of SQuAD are not here.
"""
