"""Text encoders that compute as BERT does, mapped to it: a class states what transformers reads of a `model_type`, and
where a checkpoint keeps what. None of them is seen once a model file is written."""
