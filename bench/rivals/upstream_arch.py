"""Copies a GGUF file of architecture `bitnet-b1.58` under the name `bitnet`, the only BitNet architecture of upstream llama.cpp.

    upstream_arch.py SOURCE TARGET

For timing only: upstream computes SiLU where 2B-4T has a squared ReLU, so its texts are wrong and its work is the same.
"""

import sys

import gguf

FROM, TO = "bitnet-b1.58", "bitnet"


def main():
    reader = gguf.GGUFReader(sys.argv[1])
    writer = gguf.GGUFWriter(sys.argv[2], arch=TO)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind = field.types[0]
        element = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name.replace(f"{FROM}.", f"{TO}.", 1), field.contents(), kind, sub_type=element)
    for tensor in reader.tensors:
        writer.add_tensor_info(
            tensor.name, tensor.data.shape, tensor.data.dtype, tensor.data.nbytes, tensor.tensor_type
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        writer.write_tensor_data(tensor.data)
    writer.close()


if __name__ == "__main__":
    main()
