"""The serving engine: scheduling, slots, sampling and runners. It knows no Triton; `model.py` beside it is the
adapter."""
