"""The Flower `ClientApp`: says who it is, scores importance, trains its part, judges models.

A client keeps nothing between rounds; what it needs comes with the message, but for its rows and
the original model's config, tokenizer and word embeddings. A virtual client takes its rows by its
`partition-id`; a real one is started with `--node-config` that gives its own file and its tier,
`data="/home/me/rows.jsonl" tier="small" keep="/home/me/model"`, or its device's latency table (a
file, or a shipped one's name) and what a model may take there: `table="phone.json" budget="8ms"
memory_mb=400`. What it keeps is its own model, where the recipe has clients make one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from hwnas.errors import HwnasError, UserError
from hwnas.federated.identity import Identity, encoded_of, holding_of, rows_of
from hwnas.federated.messages import (
    ORDER,
    Done,
    Failed,
    Hello,
    IdleError,
    Judged,
    OwnDevice,
    Personal,
    Work,
    arrays_of,
    pack,
    unpack,
    weights,
)
from hwnas.federated.originals import (
    Scores,
    load_original,
    original_of,
    part_of,
    recipe_of,
    sorted_of,
)
from hwnas.federated.recipe import FederatedRecipe
from hwnas.federated.tiers import dealt_tiers, own_tier
from hwnas.latency.table import LatencyTable
from hwnas.subnetwork import Subnetwork

if TYPE_CHECKING:
    from datasets import Dataset
    from flwr.app import Context, Message, RecordDict
    from flwr.clientapp import ClientApp
    from transformers import PreTrainedModel

    from hwnas.federated.local import Trainee
    from hwnas.federated.parts import Tensors
    from hwnas.federated.personal import Own
    from hwnas.tasks.kinds import Kind

_LOOK = 32  # held-out rows at most, by which a client tells the loss of what it is sent to train
RECIPE_KEY = "recipe"  # of Flower's run config, a recipe as JSON


@dataclass(frozen=True)
class Client:
    """One client, for the time of one message."""

    text: str  # the recipe, as JSON
    who: Identity

    @cached_property
    def recipe(self) -> FederatedRecipe:
        return recipe_of(self.text)

    @property
    def kind(self) -> Kind:
        return self.recipe.task.task_kind

    def hello(self) -> Hello:
        """Who this is."""
        recipe = self.recipe
        tier = self.who.tier
        device = self._own_device()
        if device is not None:
            tier = own_tier(self.who.name)
        elif tier is None and self.who.partition is not None:
            tier = dealt_tiers(recipe)[self.who.partition % recipe.clients.count]
        if tier is None:
            raise UserError('node config: give tier="NAME", one of the recipe\'s, or table="FILE"')
        if recipe.privacy is not None:
            return Hello(name=self.who.name, tier=tier, device=device)
        held = holding_of(self.text, self.who, ())
        return Hello(
            name=self.who.name,
            tier=tier,
            device=device,
            rows=len(held.train),
            labels=held.labels,
        )

    def _own_device(self) -> OwnDevice | None:
        """The device that the node's config describes, if any.

        Raises:
            UserError: its table is no file, and none that hwnas ships.
        """
        who = self.who
        if who.table is None:
            return None
        path, table = Path(who.table).expanduser(), who.table
        if path.is_file():
            table = path.read_text(encoding="utf-8")
        else:
            LatencyTable.shipped(table)
        return OwnDevice(table=table, budget=who.budget, memory_mb=who.memory_mb)

    def encoded(self, labels: list[str], split: str, phase: int | None = None) -> Dataset:
        """This client's rows in tokens; `split` is `train` or `held_out`.

        Args:
            phase: only the rows of that phase of a continual run.
        """
        return encoded_of(self.text, self.who, tuple(labels), split, phase)

    def count(self, labels: list[str], split: str, phase: int | None = None) -> int:
        """How many rows these are; a row may be several windows in tokens."""
        return len(rows_of(self.text, self.who, tuple(labels), split, phase))

    def trainee(self, work: Work, content: RecordDict) -> Trainee:
        """The dense model whose weights came."""
        from hwnas.federated.local import Trainee

        recipe, subnetwork = self.recipe, Subnetwork.of(work.genome)
        arrays, labels = arrays_of(content), tuple(work.labels)
        if recipe.train == "all":
            original = original_of(self.text, labels)
            own = original.embeddings if recipe.local.freeze_embeddings else {}
            config, task = original.config, self.kind.task
            return Trainee.of_weights(config, subnetwork, task, own | arrays)
        whole = sorted_of(self.text, labels, Scores(arrays_of(content, ORDER)))
        return Trainee.of_frozen(whole, subnetwork, recipe.method, arrays)

    def train(self, work: Work, content: RecordDict) -> tuple[Done, Tensors]:
        """Train the part that came; returns it as it is then."""
        import torch

        from hwnas.anatomy import find_shape
        from hwnas.federated.aggregation import clipped
        from hwnas.federated.local import train_locally
        from hwnas.federated.parts import within
        from hwnas.federated.privacy import hidden, largest_norm

        torch.set_num_threads(self.recipe.local.threads)
        own = Subnetwork.of(work.genome)
        trainee, before = self.trainee(work, content), arrays_of(content)
        nested = (within(own, Subnetwork.of(genome)) for genome in work.smaller)
        rows = self.encoded(work.labels, "train", work.phase)
        private = self.recipe.privacy
        if not len(rows) and private is None:
            raise IdleError(f"no rows of phase {work.phase}")
        loss = None if private else self._judge(trainee.model, work.labels, _LOOK)[0]
        original = original_of(self.text, tuple(work.labels))
        seconds = 0.0
        if len(rows):  # where privacy counts, that there are none is not told
            seconds = train_locally(
                trainee,
                original.tokenizer,
                rows,
                self.kind,
                self.recipe.local,
                smaller=[one for one in dict.fromkeys(nested) if one is not None],
                steps=work.steps,
                rate=work.rate,
                seed=work.seed,
            )
        part = part_of(self.text, tuple(work.labels), own)
        back = trainee.result(part)
        if private is None:
            count = self.count(work.labels, "train", work.phase)
            return Done(rows=count, loss=loss, seconds=seconds), back
        if private.kind == "local" or self.recipe.secure is not None:
            full = Subnetwork.full(find_shape(original.config))
            whole = part_of(self.text, tuple(work.labels), full)
            change = {name: after - before[name] for name, after in back.items()}
            most = largest_norm(private, part, whole)
            if private.kind == "local":
                change = hidden(change, private, most)
            else:  # masked, it can be clipped here only; noise is added to the sum
                change = clipped(change, most)
            back = {name: before[name] + change[name] for name in back}
        return Done(seconds=seconds), back

    def masked(self, work: Work, content: RecordDict) -> RecordDict:
        """The answer of a client whose update is masked before it is sent."""
        from hwnas.federated.secure import maskable

        done, back = self.train(work, content)
        before = arrays_of(content)
        part = part_of(self.text, tuple(work.labels), Subnetwork.of(work.genome))
        change = [back[piece.local] - before[piece.local] for piece in part.trained]
        by_rows = self.recipe.aggregation.weigh == "examples"
        return maskable(pack(done), change, done.rows if by_rows else 1)

    def evaluate(self, work: Work, content: RecordDict) -> Done:
        """Judge the model that came on the client's held-out rows."""
        import torch

        torch.set_num_threads(self.recipe.local.threads)
        begin = time.perf_counter()
        if not self.recipe.evaluation.clients:
            raise UserError("evaluation.clients: false, so no scores are told")
        loss, score = self._judge(self.trainee(work, content).model, work.labels)
        return Done(
            rows=self.count(work.labels, "held_out"),
            loss=loss,
            score=score,
            seconds=time.perf_counter() - begin,
        )

    def _judge(
        self, model: PreTrainedModel, labels: list[str], most: int | None = None
    ) -> tuple[float, float]:
        """Loss and metric on the held-out rows, or on so many of them."""
        from hwnas.models import on_gpu
        from hwnas.tasks.predict import predict

        rows = self.encoded(labels, "held_out")
        rows = rows.select(range(min(len(rows), most or len(rows))))
        answers = predict(on_gpu(model), rows, batch_size=self.recipe.local.batch)
        return (
            self.kind.loss(answers, rows),
            self.kind.score(self.recipe.task.usual_metric, answers, rows),
        )

    def candidates(self, work: Work, content: RecordDict) -> Judged:
        """Judge structures within the part that came on the client's held-out rows."""
        import torch

        from hwnas.federated.parts import within

        torch.set_num_threads(self.recipe.local.threads)
        if not self.recipe.evaluation.clients:
            raise UserError("evaluation.clients: false, so no scores are told")
        own, network = Subnetwork.of(work.genome), self.trainee(work, content).network
        found = []
        for genome in work.smaller:
            structure = within(own, Subnetwork.of(genome))
            if structure is None:
                raise UserError("a candidate has no block of the part that came")
            with network.as_subnetwork(structure) as model:
                found.append(self._judge(model.eval(), work.labels))
        return Judged(
            rows=self.count(work.labels, "held_out"),
            losses=[loss for loss, _ in found],
            scores=[score for _, score in found],
        )

    def personal(self, work: Work, content: RecordDict) -> Personal:
        """Make the client's own model out of the one that came, and keep it here.

        It goes into the folder that the node's config names as `keep`.
        """
        import torch

        from hwnas.federated.personal import personalise

        torch.set_num_threads(self.recipe.local.threads)
        begin = time.perf_counter()
        if self.recipe.personal is None:
            raise UserError("personal: the recipe has none")
        tokenizer = original_of(self.text, tuple(work.labels)).tokenizer
        rows = self.encoded(work.labels, "train")
        own = personalise(
            lambda: self.trainee(work, content), tokenizer, rows, self.recipe, work.seed
        )
        said = Personal(seconds=0.0)
        if self.recipe.evaluation.clients:
            said = self._said(own, self.trainee(work, content).model, work.labels)
        if self.who.keep is not None:
            own.save(Path(self.who.keep).expanduser(), tokenizer)
        return said.model_copy(update={"seconds": time.perf_counter() - begin})

    def _said(self, own: Own, shared: PreTrainedModel, labels: list[str]) -> Personal:
        """Of the client's own model, on its held-out rows."""
        _, before = self._judge(shared, labels)
        _, score = self._judge(own.model, labels)
        return Personal(
            rows=self.count(labels, "held_out"),
            shared=before,
            own=score,
            kept=own.kept,
            seconds=0.0,
        )

    def importance(self, work: Work) -> tuple[Done, Tensors]:
        """First-order scores of the original model's heads and neurons on a few rows."""
        import torch

        from hwnas.importance.kinds import measure
        from hwnas.models import on_gpu
        from hwnas.training.batches import small_batches

        torch.set_num_threads(self.recipe.local.threads)
        begin = time.perf_counter()
        if self.recipe.importance != "clients":
            raise UserError(f"importance: {self.recipe.importance} asks clients for nothing")
        rows = self.encoded(work.labels, "train")
        model, tokenizer = load_original(self.recipe, work.labels)
        batches = small_batches(rows, tokenizer, self.recipe.importance_rows)
        scores = measure(on_gpu(model), batches, loss_of=self.kind.probe)
        named = {f"heads.{i}": t for i, t in enumerate(scores.heads)}
        named |= {f"ffn.{i}": t for i, t in enumerate(scores.ffn)}
        seconds = time.perf_counter() - begin
        return Done(rows=min(len(rows), self.recipe.importance_rows), seconds=seconds), named


def _failed(error: Exception, *, private: bool) -> Failed:
    """Why a client could not do something; where privacy counts, its own log alone says that."""
    if not private:
        return Failed(error=str(error), idle=isinstance(error, IdleError))
    from logging import ERROR

    from flwr.common.logger import log

    log(ERROR, "%s", error, exc_info=not isinstance(error, HwnasError))
    return Failed(error="it failed; why stands in the client's own log")


@lru_cache(maxsize=1)
def _settle() -> None:
    """Prepare a process that is to answer many messages."""
    import gc

    from hwnas.console import quiet

    quiet(json=True)
    # every training ends with a full collection; of what was imported there is nothing to collect
    gc.freeze()


def client_app(recipe: FederatedRecipe | None = None) -> ClientApp:
    """The app that Flower runs on every client.

    Args:
        recipe: by default the one in Flower's run config, as the server has it.
    """
    from flwr.app import Message
    from flwr.clientapp import ClientApp

    from hwnas.federated.secure import masking

    given = recipe.model_dump_json() if recipe is not None else None

    def text_of(context: Context) -> str:
        return given or str(context.run_config[RECIPE_KEY])

    app = ClientApp(mods=[masking(lambda context: recipe_of(text_of(context)).secure)])

    def answered(
        message: Message, context: Context, answer: Callable[[Client, RecordDict], RecordDict]
    ) -> Message:
        _settle()
        try:
            content = answer(Client(text_of(context), Identity.of(context)), message.content)
        except Exception as error:
            private = recipe_of(text_of(context)).privacy is not None
            if not private and not isinstance(error, HwnasError):
                raise
            content = pack(_failed(error, private=private))
        return Message(content=content, reply_to=message)

    @app.query("hello")
    def hello(message: Message, context: Context) -> Message:
        return answered(message, context, lambda client, _: pack(client.hello()))

    @app.query("importance")
    def importance(message: Message, context: Context) -> Message:
        def answer(client: Client, content: RecordDict) -> RecordDict:
            done, scores = client.importance(unpack(content, Work))
            return pack(done, weights(scores))

        return answered(message, context, answer)

    @app.query("candidates")
    def candidates(message: Message, context: Context) -> Message:
        def answer(client: Client, content: RecordDict) -> RecordDict:
            return pack(client.candidates(unpack(content, Work), content))

        return answered(message, context, answer)

    @app.query("personal")
    def personal(message: Message, context: Context) -> Message:
        def answer(client: Client, content: RecordDict) -> RecordDict:
            return pack(client.personal(unpack(content, Work), content))

        return answered(message, context, answer)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        def answer(client: Client, content: RecordDict) -> RecordDict:
            if client.recipe.secure is not None:
                return client.masked(unpack(content, Work), content)
            done, back = client.train(unpack(content, Work), content)
            return pack(done, weights(back))

        return answered(message, context, answer)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        def answer(client: Client, content: RecordDict) -> RecordDict:
            return pack(client.evaluate(unpack(content, Work), content))

        return answered(message, context, answer)

    return app
