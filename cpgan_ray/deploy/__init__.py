"""What leaves the lab: the client bundle, the bytes of z, and the client that runs on a user's device.

`bundle` reads and checks a bundle, `codec` and `message` turn codes into bytes, `preprocessing` makes a picture file the
privatizer's input, `connection` sends bytes, `client` does all of it. These import only the standard library, numpy, Pillow,
onnxruntime and constriction. `onnx_export` and `writing` make a bundle and need torch and onnx. docs/wire-format.md describes the
formats.
"""
