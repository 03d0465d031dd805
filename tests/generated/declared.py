"""What generated models must reach, in words: the coverage test counts each of them."""

OPERATORS = """
    Abs Add And ArgMax ArgMin AveragePool BatchNormalization BitShift BitwiseXor Cast Celu Clip Compress Concat
    ConcatFromSequence Constant ConstantOfShape Conv ConvInteger ConvTranspose CumSum DepthToSpace DequantizeLinear Div
    DynamicQuantizeLinear Einsum Equal Erf Expand Flatten GRU Gather GatherElements GatherND Gemm GlobalAveragePool
    Greater GridSample HardSigmoid Identity If InstanceNormalization IsNaN LRN LSTM LayerNormalization LeakyRelu Less
    LogSoftmax Loop LpPool MatMul MatMulInteger Max MaxPool Mean Min Mod Mul Neg NonZero Not OneHot Optional
    OptionalGetElement OptionalHasElement Or PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear RNN Range ReduceL1
    ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum ReduceSumSquare RegexFullMatch Relu Reshape Resize Scan Scatter
    ScatterElements ScatterND SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength
    SequenceMap Shape SimplifiedLayerNormalization Sigmoid Size Slice Softmax SpaceToDepth Split SplitToSequence Sqrt
    Squeeze StringConcat StringNormalizer StringSplit Sub Sum Tanh Tile TopK Transpose Trilu Unique Unsqueeze Upsample
    Where Xor
    ai.onnx.ml.CastMap ai.onnx.ml.DictVectorizer ai.onnx.ml.LabelEncoder ai.onnx.ml.ZipMap
    com.microsoft.BiasGelu com.microsoft.FastGelu com.microsoft.FusedGemm com.microsoft.FusedMatMul com.microsoft.Gelu
    com.microsoft.QLinearAdd com.microsoft.QLinearGlobalAveragePool com.microsoft.QuickGelu
    com.microsoft.SkipLayerNormalization tests.inner.Lean tests.outer.Blend tests.outer.Choose
""".split()

TYPES = """
    BFLOAT16 BOOL DOUBLE FLOAT FLOAT16 FLOAT8E4M3FN FLOAT8E5M2 INT16 INT32 INT4 INT64 INT8 STRING UINT16 UINT32 UINT4
    UINT64 UINT8
""".split()

FEATURES = (
    "a cache goes in and out",
    "a capture of a constant three levels deep",
    "a capture of a value three levels deep",
    "a capture of an initializer three levels deep",
    "a capture of an input three levels deep",
    "a capture two levels deep",
    "a concat with no elements",
    "a constant is an output",
    "a function calls a function",
    "a loop carries a sequence",
    "a map is an input",
    "a map is an output",
    "a product over no elements",
    "a reduction of no elements",
    "a scalar input",
    "a scalar value",
    "a sequence is an input",
    "a sequence is an output",
    "a sparse initializer",
    "a tensor without elements",
    "a value is an output twice",
    "an initializer is an output",
    "an input is an output",
    "an open batch",
    "an optional input is empty",
    "an optional input is omitted",
    "an optional is an input",
    "an optional is an output",
    "an optional is empty",
    "an output is declared without a rank",
    "an output is omitted",
    "an output is used by nobody",
    "an output of unknown rank",
    "an output without elements",
    "as many rows as the values say",
    "broadcasting",
    "external data in many files",
    "external data in one file",
    "initializers are inputs",
    "nodes that nobody needs",
    "not sorted",
    "several domains",
    "tied weights",
)
