"""Dead channels and dead blocks taken out of any ONNX file that arrives with zeros in it.

The shape of it, one module a stage: read (`reading`), run for shapes (`probing`), analyse forward
(`analysis` and its rules), find what is needed backward (`needs`), rewrite (`edges`, `cutting`,
`moving_cut`), count and check (`counting`, `checking`). `collapsing` holds the public function.
"""
