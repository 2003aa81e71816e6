"""A decoder with its pages: spans of sequences in, logits out, by a captured graph where there is one."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from engine.cuda_graphs import Capture, CudaGraphs, Prepared, batch_buckets
from engine.kernels.reference import PagedTensor
from engine.layers.attention import Span
from engine.layers.ragged import RaggedShape
from engine.layers.upload import upload
from engine.models.decoder import Decoder
from engine.static_batch import StaticBatch


class PagedModel:
    """cache: keys and values of each layer. window, sink_tokens: the visibility rule of engine.kv_cache."""

    def __init__(
        self,
        model: Decoder,
        cache: list[tuple[PagedTensor, PagedTensor]],
        block_size: int,
        window: int | None,
        sink_tokens: int,
    ) -> None:
        self.model = model
        self.cache = cache
        self.graphs: CudaGraphs | None = None
        self.device = model.embedding.device
        self._block_size = block_size
        self._visible = (window, sink_tokens)

    def use_graphs(self, capture: Capture, max_num_seqs: int, max_rows: int, max_len: int) -> None:
        """Let graphs stand in for steps of up to max_rows rows a sequence, none longer than max_len tokens."""
        sequences, weights = batch_buckets(max_num_seqs)[-1], self.model.embedding
        largest = RaggedShape(sequences, sequences * max_rows, -(-max_len // self._block_size), max_rows)
        static = StaticBatch(largest, weights.shape[1], weights.dtype, self._block_size, *self._visible, self.device)
        self.graphs = CudaGraphs(partial(self.model.forward, cache=self.cache), static, capture)

    def prepare(self, spans: list[Span], weigh_pages: bool = False) -> Prepared:
        """The spans on the device. weigh_pages: see Operations.layout."""
        if self.graphs is not None and not weigh_pages and (prepared := self.graphs.prepare(spans)) is not None:
            return prepared
        batch = self.model.operations.layout(spans, self._block_size, *self._visible, self.device, weigh_pages)
        return Prepared(batch, partial(self.model.forward, batch, self.cache))

    def logits(self, hidden: Tensor, rows: list[int]) -> Tensor:
        """[len(rows), vocab] of these rows of hidden states."""
        if not rows:
            return hidden.new_zeros(0, 0)
        if rows == list(range(rows[0], rows[0] + len(rows))):
            return self.model.logits(hidden[rows[0] : rows[0] + len(rows)])
        return self.model.logits(hidden[upload(rows, hidden.device)])
