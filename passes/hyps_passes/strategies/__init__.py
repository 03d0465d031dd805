"""Published strategies by name: one row each, its module loaded when it is asked for."""

from hyps_passes.strategies.strategy import Strategy

STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Strategy(
            "exact",
            "the best placement there is, with its proof",
            "minimum cuts, dynamic programs and a mixed-integer program",
            "exact",
        ),
        Strategy(
            "hyps",
            "split points around what a device cannot hold and behind pooling; parts over devices in order",
            "Kaboubi, Hybrid Partitioning System for Embedded and Distributed CNNs Inference, thesis 2023, chapter 3",
            "thesis",
        ),
        Strategy(
            "dads-light",
            "minimum cut of the graph for the latency of one request",
            "Hu et al., Dynamic Adaptive DNN Surgery for Inference Acceleration on the Edge, INFOCOM 2019",
            "dads_light",
        ),
        Strategy(
            "dads-heavy",
            "minimum cuts for the busiest of device, link and server",
            "Hu et al., Dynamic Adaptive DNN Surgery for Inference Acceleration on the Edge, INFOCOM 2019",
            "dads_heavy",
        ),
        Strategy(
            "neurosurgeon",
            "best cut that one tensor crosses",
            "Kang et al., Neurosurgeon: Collaborative Intelligence Between the Cloud and Mobile Edge, ASPLOS 2017",
            "neurosurgeon",
        ),
        Strategy(
            "scission",
            "every cut on every sequence of up to three devices, ranked",
            "Lockhart et al., Scission: Context-Aware Cloud-Edge Distribution of Deep Neural Networks, UCC 2020",
            "scission",
        ),
        Strategy(
            "dynamic-split",
            "compressive natural bottlenecks, no offloading or full offloading",
            "Bakhtiarnia et al., Dynamic Split Computing for Efficient Deep Edge Intelligence, 2022",
            "dynamic_split",
        ),
        Strategy(
            "defer",
            "an equal number of layers on each device",
            "Parthasarathy and Krishnamachari, DEFER: Distributed Edge Inference for Deep Neural Networks, 2022",
            "defer",
        ),
        Strategy(
            "pipeedge",
            "dynamic program for the throughput of a pipeline over unlike devices",
            "Hu et al., PipeEdge: Pipeline Parallelism for Large-Scale Model Inference on Edge Devices, DSD 2022",
            "pipeedge",
        ),
        Strategy(
            "coedge",
            "shortest way through layers and devices, for latency",
            "L. Hu et al., CoEdge: Exploiting the Edge-Cloud Collaboration for Faster Deep Learning, IEEE Access 2020",
            "coedge",
        ),
        Strategy(
            "branchy",
            "best cut for the expected latency of a model with early exits",
            "Pacheco and Couto, Inference Time Optimization Using BranchyNet Partitioning, ISCC 2020",
            "branchy",
        ),
        Strategy(
            "even-memory",
            "weights as equal as can be on each device",
            "the rule of the Coral pipeline compiler and of SEIFER, Parthasarathy and Krishnamachari 2022",
            "even_memory",
        ),
        Strategy("local", "everything where requests arise", "the baseline of every paper", "local"),
        Strategy("remote", "everything on the best other device", "the baseline of every paper", "remote"),
    )
}
"""`--strategy` and `hypsc compare` choose among them; `exact` is the default."""
