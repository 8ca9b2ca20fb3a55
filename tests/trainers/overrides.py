"""What users override in a trainer: mixed in before one of ours."""

from trl_plus.step.exact_step import row_weights


def penalty(model):
    """A term that is the same for every micro-batch."""
    return 0.01 * sum((p**2).sum() for name, p in model.named_parameters() if "q_proj" in name)


def size_of_logits(model, inputs):
    """(B,): one value per row, or per pair from its chosen side."""
    rows = len(row_weights(inputs))
    ids, mask = inputs["input_ids"][:rows], inputs["attention_mask"][:rows]
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
    return (logits**2).mean(-1).mul(mask).sum(-1) / 10


class Classic:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs, return_outputs)


class PassesOn:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class WantsOutputs:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        assert outputs.logits.dim() == 3
        return (loss, outputs) if return_outputs else loss


class Twice:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        first = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        return (first + super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)) / 2


class AddsToTheMean:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs) + penalty(model)


class AddsToTheExact:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch) + penalty(model)


class AddsExactly:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        return loss + self.exact_mean(size_of_logits(model, inputs), inputs, num_items_in_batch)


class OwnLoss:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return size_of_logits(model, inputs).mean()


class OwnInnerLoss:
    def _compute_loss(self, model, inputs, return_outputs):
        return size_of_logits(model, inputs).mean()


class OwnOuterLoss:
    """As TRL's `compute_loss`, with a term."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return self._compute_loss(model, inputs, return_outputs) + penalty(model)


class AddsInside:
    def _compute_loss(self, model, inputs, return_outputs):
        return super()._compute_loss(model, inputs, return_outputs) + penalty(model)


class NoCount:
    def get_batch_samples(self, *args):
        return super().get_batch_samples(*args)[0], None


class OwnCount:
    def get_batch_samples(self, *args):
        batches, _ = super().get_batch_samples(*args)
        return batches, sum(batch["completion_mask"].sum() for batch in batches)


class OwnDraw:
    def get_batch_samples(self, epoch_iterator, num_batches, device):
        return [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)], None


class OwnStep:
    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = self.compute_loss(model, self._prepare_inputs(inputs), num_items_in_batch=num_items_in_batch)
        loss = loss / self.current_gradient_accumulation_steps
        self.accelerator.backward(loss)
        return loss.detach()


class OwnStepOnMeans:
    def training_step(self, model, inputs, *args):
        loss = self.compute_loss(model, self._prepare_inputs(inputs)) / self.current_gradient_accumulation_steps
        self.accelerator.backward(loss)
        return loss.detach()


class WrapsTheStep:
    def training_step(self, *args, **kwargs):
        return super().training_step(*args, **kwargs)


class AlreadyScaled:
    """`loss_is_scaled_for_ga` of transformers: its own loss is not divided any more."""

    loss_is_scaled_for_ga = True


def without_last_token(inputs):
    """The last completion token of every row is masked."""
    mask = inputs["completion_mask"]
    last = mask.flip(1).cumsum(1).flip(1) == 1
    return {**inputs, "completion_mask": mask * ~last}


class MasksATokenBefore:
    """Changes rows before the step, in `_prepare_inputs`, after their tokens were counted."""

    def _prepare_inputs(self, inputs):
        return without_last_token(super()._prepare_inputs(inputs))


class MasksATokenInPlace:
    def training_step(self, model, inputs, *args):
        inputs["completion_mask"].copy_(without_last_token(inputs)["completion_mask"])
        return super().training_step(model, inputs, *args)


def first_rows(inputs, rows):
    """The first row or pair of a micro-batch."""
    return {name: value[[0, rows]] if len(value) == 2 * rows else value[:1] for name, value in inputs.items()}


class KeepsTheFirst:
    """Leaves out rows that were counted."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = first_rows(inputs, len(row_weights(inputs)))
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class DrawsTheFirst:
    def get_batch_samples(self, *args):
        batches, totals = super().get_batch_samples(*args)
        return [first_rows(batch, len(row_weights(batch))) for batch in batches], totals


class Renames:
    """Another token in the prompt of every row."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        ids = inputs["input_ids"].clone()
        ids[:, 1] = 9
        return super().compute_loss(model, {**inputs, "input_ids": ids}, return_outputs, num_items_in_batch)
