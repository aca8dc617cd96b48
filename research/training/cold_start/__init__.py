"""A cold start from gold decompositions: demonstrations for real questions, and training on them.

A small pretrained model does not search by itself, so that GRPO finds nothing to reward. MuSiQue, 2Wiki and
HotpotQA say how each question is answered step by step: hops.py reads that, demonstrator.py plays it in the
training's own prompt, protocol and retriever, and sft.py trains on what came of it. Labels are used here; a
7B model needs none of this.
"""
