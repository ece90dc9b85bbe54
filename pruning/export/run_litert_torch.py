"""A program of its own, in an environment of its own: turns a program of PyTorch's into LiteRT's file.

`python run_litert_torch.py program.pt2 model.tflite float32|int8`, by a Python that has `litert-torch`.
"""

import sys

if __name__ == "__main__":
    import litert_torch
    import torch

    source, target, numbers = sys.argv[1:]
    program = torch.export.load(source)
    litert_torch.convert(program.module(), program.example_inputs[0]).export(target)
    if numbers == "int8":
        from ai_edge_quantizer import quantizer, recipe

        quantizer.Quantizer(target, recipe.dynamic_wi8_afp32()).quantize().export_model(target, overwrite=True)
