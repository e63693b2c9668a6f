"""Other runtimes on the same function: what `csengine bench --against` and `bench/` compare with.

`catalogue` names them and their variants, `functions` says what they must compute, `contest` lets them take turns.
Each runs in a process and a virtual environment of its own (`worker`), from the packed file itself, and sees of
csengine only this package's plain Python; `onnx_form` writes the file for those that read ONNX.
"""
