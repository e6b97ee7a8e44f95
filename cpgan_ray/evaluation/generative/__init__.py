"""The generative attack: it draws pictures that could belong to a code, where all other attacks predict the mean of them.

The best prediction by squared error is blurred: it leaves out everything that the code does not determine. A draw from the
conditional distribution looks like a picture, but has twice the squared error: R2 of one draw is 2 R2 - 1 if R2 is that of the
conditional mean. It is therefore never ranked by R2, and never the strongest attack. It is judged by likeness: does the judge of
identity find a draw more similar to the true picture than draws that do not use the code?

`starts` predicts the pictures that the flow is fitted on from codes of other people; `flow` learns to move from there to the
pictures (posterior-mean rectified flow: Ohayon et al., ICLR 2025); `draws` fits both; `selection` chooses among several draws the
one whose own code is closest; `controls` are draws that do not use the code, or not this code; `judging` compares them, paired
picture by picture; `attack` puts them together.
"""
