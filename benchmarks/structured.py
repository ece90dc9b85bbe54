"""Networks of the catalogue over graphs, tables, clicks, densities and medical pictures."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.catalogue import Inputs, Network, Part, of

Made = tuple[nn.Module, Inputs]


def nodes() -> tuple[Tensor, Tensor]:
    """Return a graph of 12 nodes of 5 features, and its 40 edges."""
    return torch.randn(12, 5), torch.randint(0, 12, (2, 40))


class Graph(nn.Module):
    """Two convolutions over a graph."""

    def __init__(self, kind: str, **how: Any) -> None:
        super().__init__()
        make = of(f"torch_geometric.nn:{kind}")
        if kind == "GINConv":
            self.first = make(nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16)))
            self.second = make(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)))
        else:
            self.first = make(5, 16, **how)
            self.second = make(16 * how.get("heads", 1), 3, **({"K": how["K"]} if "K" in how else {}))

    def forward(self, features: Tensor, edges: Tensor) -> Any:
        """Return three numbers for each node."""
        return self.second(self.first(features, edges).relu(), edges)


class Pooled(nn.Module):
    """A graph's answer from the mean over its nodes."""

    def __init__(self, *convolutions: nn.Module, width: int) -> None:
        super().__init__()
        self.convolutions, self.out = nn.ModuleList(convolutions), nn.Linear(width, 3)

    def forward(self, graph: Any) -> Any:
        """Return three numbers for each graph of a batch."""
        features = graph.x
        for convolution in self.convolutions:
            features = convolution(features, graph.edge_index).relu()
        return self.out(of("torch_geometric.nn:global_mean_pool")(features, graph.batch))


def _graph(kind: str, **how: Any) -> Network:
    return Network("torch-geometric", lambda: (Graph(kind, **how), nodes()))


def _whole(kind: str, **how: Any) -> Network:
    def make() -> Made:
        return of(f"torch_geometric.nn:{kind}")(5, 16, 2, 3, **how), nodes()

    return Network("torch-geometric", make)


def _batched(*, gated: bool) -> Made:
    data, batch = of("torch_geometric.data:Data"), of("torch_geometric.data:Batch")
    width = 16 if gated else 5
    graphs = [data(x=torch.randn(6, width), edge_index=torch.randint(0, 6, (2, 14))) for _ in range(4)]
    convolution = of("torch_geometric.nn:GCNConv")
    if gated:
        network = Pooled(of("torch_geometric.nn:GatedGraphConv")(16, 3), width=16)
    else:
        network = Pooled(convolution(5, 16), convolution(16, 12), width=12)
    return network, (batch.from_data_list(graphs),)


def _interactions(positions: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    """Return an edge and a distance for each pair of atoms."""
    pairs = torch.combinations(torch.arange(len(positions)), 2)
    pairs = torch.cat([pairs, pairs.flip(1)]).T
    return pairs, (positions[pairs[0]] - positions[pairs[1]]).norm(dim=-1)


def _molecule() -> Made:
    sizes = {"hidden_channels": 16, "num_filters": 16, "num_interactions": 2, "num_gaussians": 8}
    network = of("torch_geometric.nn:SchNet")(**sizes, interaction_graph=_interactions)
    return network, (torch.randint(1, 9, (4,)), torch.randn(4, 3))


def _sequential_attention() -> Made:
    sizes = {"n_d": 8, "n_a": 8, "n_steps": 3, "virtual_batch_size": 16, "group_attention_matrix": torch.eye(10)}
    return Part(of("pytorch_tabnet.tab_network:TabNet")(10, 3, **sizes), 0), (torch.randn(32, 10),)


def _ensemble() -> Made:
    sizes = {"n_num_features": 10, "d_out": 3, "n_blocks": 2, "d_block": 16, "k": 4}
    return of("tabm:TabM").make(**sizes), (torch.randn(16, 10),)


def _clicks(kind: str) -> Network:
    def make() -> Made:
        sparse, dense = of("deepctr_torch.inputs:SparseFeat"), of("deepctr_torch.inputs:DenseFeat")
        columns = [*(sparse(f"c{i}", vocabulary_size=9, embedding_dim=8) for i in range(3)), dense("d", 1)]
        both = (columns,) if kind == "PNN" else (columns, columns)
        network = of(f"deepctr_torch.models:{kind}")(*both, dnn_hidden_units=(16, 12), device="cpu")
        return network, (torch.cat([torch.randint(0, 9, (16, 3)).float(), torch.randn(16, 1)], 1),)

    return Network("deepctr-torch", make)


def _interests() -> Made:
    sparse, several = of("deepctr_torch.inputs:SparseFeat"), of("deepctr_torch.inputs:VarLenSparseFeat")
    columns = [sparse("user", 9, 8), sparse("item", 9, 8)]
    columns.append(several(sparse("hist_item", 9, 8), maxlen=4, length_name="len"))
    network = of("deepctr_torch.models:DIN")(columns, ["item"], dnn_hidden_units=(16, 12), device="cpu")
    return network, (torch.cat([torch.randint(1, 9, (16, 6)), torch.randint(1, 5, (16, 1))], 1).float(),)


def _density(transforms: Callable[[], list[Any]]) -> Network:
    def make() -> Made:
        base = of("nflows.distributions:StandardNormal")([4])
        flow = of("nflows.flows:Flow")(of("nflows.transforms:CompositeTransform")(transforms()), base)
        return Part(flow, call="log_prob"), (torch.randn(16, 4),)

    return Network("nflows", make)


def _autoregressive() -> list[Any]:
    reverse, affine = (
        of(f"nflows.transforms:{name}") for name in ("ReversePermutation", "MaskedAffineAutoregressiveTransform")
    )
    return [reverse(4), affine(4, 16), reverse(4), affine(4, 16)]


def _splines() -> list[Any]:
    residual, coupling = of("nflows.nn.nets:ResidualNet"), "PiecewiseRationalQuadraticCouplingTransform"

    def inner(inputs: int, outputs: int) -> Any:
        return residual(inputs, outputs, 16, num_blocks=1)

    mask = torch.tensor([1, 0, 1, 0])
    layer = of(f"nflows.transforms:{coupling}")(mask, inner, tails="linear", num_bins=4)
    return [of("nflows.transforms:RandomPermutation")(4), layer]


def _medical(kind: str, side: int = 32, batch: int = 2, **how: Any) -> Network:
    def make() -> Made:
        network = of(f"monai.networks.nets:{kind}")(spatial_dims=2, in_channels=1, out_channels=2, **how)
        return network, (torch.randn(batch, 1, side, side),)

    return Network("monai", make)


GRAPHS = {
    **{
        kind: _graph(kind)
        for kind in ("GCNConv", "SAGEConv", "GINConv", "GraphConv", "TransformerConv", "ARMAConv", "TAGConv")
    },
    "ChebConv": _graph("ChebConv", K=2),
    "GATConv": _graph("GATConv", heads=2),
    "GATv2Conv": _graph("GATv2Conv", heads=2),
    "GCN": _whole("GCN"),
    "GIN": _whole("GIN"),
    "GAT, all layers read": _whole("GAT", jk="cat", v2=True),
    "GraphSAGE, by an LSTM": _whole("GraphSAGE", jk="lstm"),
    "PNA": _whole("PNA", aggregators=["mean", "max"], scalers=["identity"], deg=torch.tensor([1.0, 3, 5, 3])),
    "gated graph network": Network("torch-geometric", lambda: _batched(gated=True)),
    "GCN over batches of graphs": Network("torch-geometric", lambda: _batched(gated=False)),
    "SchNet": Network("torch-geometric", _molecule),
}
"""Graphs."""

STRUCTURED = {
    **GRAPHS,
    "TabNet": Network("pytorch-tabnet", _sequential_attention),
    "TabM": Network("tabm", _ensemble),
    **{
        kind: _clicks(kind)
        for kind in ("DeepFM", "xDeepFM", "DCN", "AutoInt", "DCNMix", "FiBiNET", "NFM", "IFM", "ONN", "PNN")
    },
    "DIN": Network("deepctr-torch", _interests),
    "masked autoregressive flow": _density(_autoregressive),
    "neural spline flow": _density(_splines),
    "MONAI UNet": _medical("UNet", channels=(8, 12, 16), strides=(2, 2), num_res_units=2),
    "SegResNet": _medical(
        "SegResNet",
        init_filters=8,
        blocks_down=(1, 1, 1),
        blocks_up=(1, 1),
    ),
    "UNETR": _medical(
        "UNETR",
        batch=1,
        img_size=(32, 32),
        feature_size=8,
        hidden_size=16,
        mlp_dim=24,
        num_heads=2,
    ),
    "Swin UNETR": _medical(
        "SwinUNETR",
        64,
        batch=1,
        feature_size=12,
        depths=(1, 1, 1, 1),
        num_heads=(2, 2, 2, 2),
    ),
    "DynUNet": _medical(
        "DynUNet",
        kernel_size=[3, 3, 3],
        strides=[1, 2, 2],
        upsample_kernel_size=[2, 2],
        filters=[8, 12, 16],
    ),
}
"""All of them."""
