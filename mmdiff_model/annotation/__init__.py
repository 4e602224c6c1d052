"""Pictures become annotated records for training: captions, class words, boxes by word and masks by box.

The steps and filters are the released annotation tool's (alibaba/mm-diff data_annotation), on transformers alone.
"""
