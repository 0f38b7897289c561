"""Collectives in XLA's text: loops, branches, asynchronous ones, ways of writing groups, bytes on the wire."""

import pytest

from llmlab.plan.hlo import Collective, Program, by_kind, collectives, kernels, replica_groups

# As libtpu writes it: a loop of 32 turns whose gather is started, hidden in a fusion and done; a reduction; a branch.
TPU = """HloModule jit__step, is_scheduled=true

%start (param_0: bf16[1,16,8]) -> (bf16[1,16,8], bf16[1,64,8], u32[]) {
  %param_0 = bf16[1,16,8]{2,1,0} parameter(0)
  %all-gather.1 = bf16[1,64,8]{2,1,0} all-gather(%param_0), replica_groups=[1,4]<=[4], dimensions={1}
  ROOT %call.46 = (bf16[1,16,8], u32[]{:S(2)}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.449 (param_0: bf16[1,16,8]) -> bf16[1,64,8] {
  %param_0 = bf16[1,16,8]{2,1,0} parameter(0)
  ROOT %all-gather.2 = bf16[1,64,8]{2,1,0} all-gather(%param_0), replica_groups=[1,4]<=[4], dimensions={1}
}

%done (param_0: bf16[1,16,8]) -> bf16[1,64,8] {
  %param_0 = bf16[1,16,8]{2,1,0} parameter(0)
  ROOT %all-gather.3 = bf16[1,64,8]{2,1,0} all-gather(%param_0), replica_groups=[1,4]<=[4], dimensions={1}
}

%body (arg: (s32[], bf16[32,16,8])) -> (s32[], bf16[32,16,8]) {
  %arg = (s32[], bf16[32,16,8]) parameter(0)
  %async-collective-start.6 = (bf16[1,16,8], bf16[1,64,8], u32[]) fusion(%arg), kind=kCustom, calls=%start
  %fusion.449 = bf16[1,64,8]{2,1,0} fusion(%arg), kind=kCustom, calls=%async_collective_fusion.449
  %async-collective-done.6 = bf16[1,64,8]{2,1,0} fusion(%arg), kind=kCustom, calls=%done
  %all-reduce.8 = (f32[64], f32[8]) all-reduce(%a, %b), replica_groups=mesh['data'=1,'fsdp'=4] {'fsdp'}, to_apply=%add
  ROOT %tuple = (s32[], bf16[32,16,8]) tuple(%arg)
}

%cond (arg: (s32[], bf16[32,16,8])) -> pred[] {
  %constant.3 = s32[] constant(32)
  ROOT %lt = pred[] compare(%x, %constant.3), direction=LT
}

%yes (arg: f32[8]) -> f32[8] {
  ROOT %all-reduce.9 = f32[8]{0} all-reduce(%arg), replica_groups={{0,1},{2,3}}, to_apply=%add
}

%no (arg: f32[8]) -> f32[8] {
  ROOT %arg = f32[8]{0} parameter(0)
}

ENTRY %main (p: bf16[32,16,8]) -> f32[] {
  %while.1 = (s32[], bf16[32,16,8]) while(%init), condition=%cond, body=%body, metadata={op_name="jit/jvp()/while"}
  %while.2 = (s32[], f32[2,3]) while(%init), condition=%cond, body=%no, metadata={op_name="jit/transpose(jvp())/while"}
  %c = f32[8]{0} conditional(%p, %a, %b), branch_computations={%no, %yes}
  %alone = f32[8]{0} all-reduce(%c), replica_groups={{0},{1},{2},{3}}, to_apply=%add
  %rs = (f32[64]{0}, f32[16]{0}, u32[]) reduce-scatter-start(%c), replica_groups={{0,1,2,3}}, dimensions={0}
  %rsd = f32[16]{0} reduce-scatter-done(%rs)
  %cp = f32[16]{0} collective-permute(%rsd), source_target_pairs={{0,1},{1,0}}
  ROOT %k = f32[8]{0} custom-call(%c), custom_call_target="tpu_custom_call"
}
"""


def test_what_is_executed_is_counted_once_and_loops_are_multiplied():
    found = by_kind(collectives(TPU))
    assert found["all-gather"] == {"count": 32, "bytes": 32 * 64 * 8 * 2}
    assert found["all-reduce"] == {"count": 32 + 1, "bytes": 32 * (64 + 8) * 4 + 8 * 4}  # none of one device alone
    assert found["reduce-scatter"] == {"count": 1, "bytes": 16 * 4}
    assert found["collective-permute"] == {"count": 1, "bytes": 16 * 4}


def test_what_runs_beside_computation_is_known():
    hidden = {one.kind: one.hidden for one in collectives(TPU)}
    assert hidden == {"all-gather": True, "all-reduce": False, "reduce-scatter": True, "collective-permute": False}


def test_groups_that_span_slices_are_known():
    spans = {(one.kind, one.members): one.spans for one in collectives(TPU, slices=(0, 0, 1, 1))}
    assert spans[("all-gather", 4)] and not spans[("all-reduce", 2)] and not spans[("collective-permute", 2)]
    assert {one.spans for one in collectives(TPU, slices=(0, 1, 0, 1)) if one.members == 2} == {True}


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}, x", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[4], x", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, x", [[0, 1, 2, 3]]),
        ("replica_groups={}, x", [[0, 1, 2, 3]]),
    ],
)
def test_groups_are_read(text, groups):
    assert replica_groups(text, 4) == groups


def test_bytes_on_the_wire_of_a_ring():
    wire = lambda kind, size=800.0, members=4: Collective(kind, size, members, False, True, times=2).wire
    assert wire("all-gather") == wire("all-to-all") == 2 * 600
    assert wire("all-reduce") == 2 * 1200 and wire("reduce-scatter") == 2 * 2400
    assert wire("collective-permute") == 2 * 800


def test_kernels_and_the_arrays_of_loops():
    assert kernels(TPU) == {"tpu_custom_call": 1}
    program = Program(TPU)
    assert program.stacks("transpose") == [["s32[]", "f32[2,3]"]] and len(program.stacks("")) == 2
