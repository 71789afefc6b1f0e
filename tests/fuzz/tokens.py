"""Texts that mean something to the readers, put into inputs as they are."""

COCO = tuple(
    f'"{word}"'.encode()
    for word in (
        *("images", "annotations", "categories", "id", "image_id", "category_id", "segmentation"),
        *("counts", "size", "bbox", "point", "iscrowd", "area", "instances", "score", "keypoints"),
    )
)
RLE = (b'"counts"', b'"size"', b"P4", b"0", b"1", b"o", b"_", b"oooooooo", b"-1", b"[[", b"]]")
XML = (
    *(b"<image ", b"<points ", b"</points>", b"<track/>", b'points="1,2;3,4"', b"<!ENTITY a 'b'>"),
    *(b"<!DOCTYPE a [", b"&a;", b"<object>", b"</object>", b"<bndbox>", b"<size>", b"&#0;"),
    *(b"<![CDATA[", b'encoding="utf-16"', b'encoding="nothing"', b"image,x,y,category\n"),
)
NPY = (
    *(b"\x93NUMPY\x01\x00", b"'descr': '|O'", b"'<f4'", b"'<U1'", b"'<U999999999'", b"'|V8'"),
    *(b"(2, 4)", b"(-1,)", b"(9223372036854775807,)", b"(0,)", b"(1, 0, 4)", b"()", b"(2,)"),
    *(b"'fortran_order': True", b"[('a', 'O')]", b"[('a', '<f4'), ('b', '<f4')]", b"\x02\x00"),
    *(b"'<M8[s]'", b"'<m8'", b"'<c16'", b"'<f2'", b"'>i8'", b"'?'", b"'|S0'", b"'|S4'"),
)
PICKLE = (
    *(b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\n_reconstruct\n"),
    *(b"cnumpy.core.multiarray\nscalar\n", b"c_codecs\nencode\n", b"cbuiltins\nset\n"),
    *(b"cos\nsystem\n", b"(", b"t", b"R", b"b", b".", b"}", b"]", b"e", b"u", b"s", b"0", b"2"),
    *(b"N", b"\x85", b"\x86", b"\x87", b"q\x00", b"h\x00", b"r\xff\xff\xff\x7f", b"\x94"),
    *(b"j\x00\x00\x00\x00", b"K\x01", b"M\xff\xff", b"J\xff\xff\xff\xff", b"X\x01\x00\x00\x00a"),
    *(b"\x8a\x08" + b"\xff" * 8, b"G\x7f\xf8" + b"\0" * 6, b"B\xff\xff\xff\x7f", b"\x8f", b"\x90"),
    *(b"\x8e" + b"\xff" * 8, b"\x95" + b"\xff" * 8, b"\x96" + b"\xff" * 8, b"\x91", b"\x93"),
    *(b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"ctorch\nSize\n", b"Q"),
    *(b"cbuiltins\nbytearray\n", b"ccollections\nOrderedDict\n", b"ctorch\nDoubleStorage\n"),
)
YAML = (
    *(b"MODEL:", b"SOLVER:", b"INPUT:", b"  ", b"\n", b": ", b"- ", b"{", b"}", b"[", b"]"),
    *(b"&a ", b"*a", b"<<: *a", b"!!python/object/apply:os.system ['true']", b"!!binary", b"!!set"),
    *(b"_BASE_: files/base.yaml\n", b"VERSION: 2\n", b"VERSION: x\n", b".nan", b".inf", b"1e5"),
    *(
        b"!!timestamp 2001-01-01",
        b"0x10",
        b"0o7",
        b"1:30",
        b"? a",
        b"|\n",
        b">\n",
        b"'",
        b'"',
        b"~",
    ),
    *(b"!!float x", b"!!int x", b"()", b"(1,2)", b"MODEL.DEVICE: cpu", b"DEVICE: cuda:99999"),
    *(b"%YAML 9", b"---\n", b"null", b"_BASE_: [files/base.yaml, files/base.yaml]\n"),
)
