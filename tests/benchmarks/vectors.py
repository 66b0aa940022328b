"""Vector search at scale: Tandem's index beside raw FAISS, FAISS HNSW, usearch and Milvus Lite on the same vectors.

    python tests/benchmarks/vectors.py --embeddings chunks.npy --questions questions.npy --rows 1000000 \
        --work /some/folder --json vectors.json [--engines tandem,faiss,hnsw,usearch,milvus]

The vectors are made from real embeddings (n, d): each is normalise(x + u (y - x) + v (z - x) + noise), x a real one, y
and z among its 20 nearest, u and v uniform in [0, 0.6], noise of length 0.15 in random directions; so they lie where
the real ones do, in clusters of very different density. Questions: 400 more made the same way and never stored, and the
real ones of --questions. Exact neighbours are computed once by matrix products and kept in the work folder, as are
the results of engines that already ran there: one engine can run at a time. usearch, milvus-lite and pymilvus are not
dependencies of Tandem: install them where Python finds them. One thread searches; builds use --threads.
"""

import argparse
import gc
import hashlib
import json
import os
import platform
import resource
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import faiss
import numpy as np

from indexer.vectors import file, inverted
from indexer.vectors.faiss import FaissIndex
from indexer.vectors.layered import LayeredIndex

K, MADE, BATCH, TARGET = 10, 400, 50_000, 0.95
# Real questions with a stored vector at least this similar have something to find; the others ask about something else.
NEAR = 0.4
EFFORTS = [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]
Search = Callable[[np.ndarray], list[int]]


def neighbours(real: np.ndarray) -> np.ndarray:
    index = faiss.IndexFlatIP(real.shape[1])
    index.add(real)
    return index.search(real, 21)[1][:, 1:]


def make(real: np.ndarray, near: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    base = random.integers(0, len(real), count)
    x = real[base]
    y, z = (real[near[base, random.integers(0, near.shape[1], count)]] for _ in range(2))
    u, v = random.uniform(0, 0.6, (2, count, 1)).astype(np.float32)
    noise = random.standard_normal(x.shape, np.float32)
    noise *= 0.15 / np.linalg.norm(noise, axis=1, keepdims=True)
    rows = x + u * (y - x) + v * (z - x) + noise
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def prepare(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors (memory-mapped), questions, their K exact neighbours; made once per work folder and size."""
    stored, asked = args.work / f"vectors-{args.rows}.npy", args.work / f"questions-{args.rows}.npz"
    if not asked.exists():
        real = np.load(args.embeddings).astype(np.float32)
        real = real[np.linalg.norm(real, axis=1) > 0.5]
        real /= np.linalg.norm(real, axis=1, keepdims=True)
        near, random = neighbours(real), np.random.default_rng(7)
        made = make(real, near, MADE, random)
        questions = np.concatenate([made, np.load(args.questions).astype(np.float32)])
        out = np.lib.format.open_memmap(stored, "w+", np.float32, (args.rows, real.shape[1]))
        truth = np.empty((len(questions), 0), np.int64)
        scores = np.empty((len(questions), 0), np.float32)
        for start in range(0, args.rows, BATCH):
            batch = make(real, near, min(BATCH, args.rows - start), random)
            out[start : start + len(batch)] = batch
            similar = questions @ batch.T
            best = np.argpartition(-similar, K, axis=1)[:, :K]
            scores = np.concatenate([scores, np.take_along_axis(similar, best, 1)], axis=1)
            truth = np.concatenate([truth, best + start], axis=1)
            order = np.argsort(-scores, axis=1)[:, :K]
            scores, truth = np.take_along_axis(scores, order, 1), np.take_along_axis(truth, order, 1)
        out.flush()
        np.savez(asked, questions=questions, truth=truth, real=len(real))
    loaded = np.load(asked)
    return np.load(stored, mmap_mode="r"), loaded["questions"], loaded["truth"]


def memory() -> tuple[float, float]:
    """MB of this process now: anonymous (its own) and all resident (with mapped files)."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(fields["RssAnon"].split()[0]) / 1024, int(fields["VmRSS"].split()[0]) / 1024


def recall(found: list[list[int]], truth: np.ndarray) -> float:
    return float(
        np.mean([len(set(row[:K]) & set(right.tolist())) / K for row, right in zip(found, truth, strict=True)])
    )


def measure(
    searches: dict[str, Search], vectors: np.ndarray, questions: np.ndarray, truth: np.ndarray, step: int = 1
) -> dict[str, dict[str, float]]:
    """Recall and latency of each search over every step-th question, the engines taking turns on every question."""
    times: dict[str, list[float]] = {name: [] for name in searches}
    work: dict[str, list[float]] = {name: [] for name in searches}
    found: dict[str, list[list[int]]] = {name: [] for name in searches}
    asked = np.arange(0, len(questions), step)
    for search in searches.values():
        for place in asked[:50]:
            search(questions[place])
    for place in asked:
        # Who goes first meets a colder cache.
        for name in list(searches) if place % 2 else list(searches)[::-1]:
            started, busy = time.perf_counter(), time.thread_time()
            rows = searches[name](questions[place])
            times[name].append(time.perf_counter() - started)
            work[name].append(time.thread_time() - busy)
            found[name].append(rows)
    near = is_near(vectors, questions, truth)[asked]
    kinds = {"made": asked < MADE, "near": near, "far": (asked >= MADE) & ~near}
    results = {}
    for name, rows in found.items():
        results[name] = {
            f"recall_{kind}": round(recall([rows[n] for n in np.flatnonzero(mask)], truth[asked[mask]]), 4)
            for kind, mask in kinds.items()
            if mask.any()
        }
        results[name]["p50_ms"] = round(1000 * float(np.percentile(times[name], 50)), 3)
        results[name]["p95_ms"] = round(1000 * float(np.percentile(times[name], 95)), 3)
        # Processor time of this thread: what wall time would be on a machine with nothing else to do.
        results[name]["cpu_p50_ms"] = round(1000 * float(np.percentile(work[name], 50)), 3)
    return results


def tandem(args: argparse.Namespace, vectors: np.ndarray, questions: np.ndarray, truth: np.ndarray) -> dict:
    """Build, save and map Tandem's file; the raw FAISS index is read from the same file into memory."""
    path = args.work / f"tandem-{args.rows}.faiss"
    rows, read = np.arange(args.rows), 0.0

    def source(wanted: np.ndarray) -> np.ndarray:
        nonlocal read
        started = time.perf_counter()
        batch = vectors[wanted[0] : wanted[-1] + 1] if wanted[-1] - wanted[0] + 1 == len(wanted) else vectors[wanted]
        read += time.perf_counter() - started
        return np.asarray(batch)

    facts: dict[str, object] = {}
    if not args.reuse:
        faiss.omp_set_num_threads(args.threads)
        before, started = memory()[0], time.perf_counter()
        built = inverted.build(rows, source, vectors.shape[1])
        facts |= {"build_s": round(time.perf_counter() - started, 1), "of_which_reading_s": round(read, 1)}
        facts["build_mb"] = round(memory()[0] - before)
        path.unlink(missing_ok=True)
        started = time.perf_counter()
        file.save(built.index, path)
        facts |= {"save_s": round(time.perf_counter() - started, 2), "recall_at_build": round(built.recall, 4)}
        del built
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    gc.collect()
    before, started = memory(), time.perf_counter()
    base = file.load(path, sha256, vectors.shape[1])
    loaded = time.perf_counter() - started
    assert base is not None
    probes = max(int(base.inner.nprobe), inverted.fewest_probes(args.rows, int(base.inner.nlist)))
    facts |= {"lists": int(base.inner.nlist), "probes": probes}
    base.inner.nprobe = probes
    index = LayeredIndex(base)
    faiss.omp_set_num_threads(1)
    searches: dict[str, Search] = {"tandem": lambda question: [row for row, _ in index.search(question, K)]}
    for question in questions:
        index.search(question, K)
    after = memory()
    own = {"memory_mb": round(after[0] - before[0]), "mapped_mb": round(after[1] - before[1] - after[0] + before[0])}
    raw = faiss.read_index(str(path))
    inner = faiss.downcast_index(raw.index)
    inner.nprobe = probes
    searches["faiss"] = lambda question: inner.search(question[None, :], K)[1][0].tolist()
    # FAISS itself on the mapping that Tandem searches: the difference is Tandem's own code.
    wanted = faiss.SearchParametersIVF(nprobe=probes)
    mapped = base.inner
    searches["faiss, same mapping"] = lambda question: mapped.search(question[None, :], K, params=wanted)[1][0].tolist()
    # The same index as a generation that lost and gained so many rows that the next change rewrites the file.
    random = np.random.default_rng(3)
    some = np.sort(random.choice(args.rows, args.rows // 200, replace=False))
    edited = index.changed(some, rows[: len(some)] + args.rows, np.asarray(vectors[some]))
    alias = dict(zip((rows[: len(some)] + args.rows).tolist(), some.tolist(), strict=True))
    searches["tandem, 0.5 % gone, 0.5 % added"] = lambda question: [
        alias.get(row, row) for row, _ in edited.search(question, K)
    ]
    results = measure(searches, vectors, questions, truth)
    results["tandem"] |= {**facts, **own, "open_s": round(loaded, 2), "file_mb": round(path.stat().st_size / 1e6)}
    results["faiss"] |= {"lists": facts["lists"], "probes": probes, "note": "the same file, read into memory"}
    for share in (0.001, 0.01, 0.1):
        results[f"tandem, filter keeps {share:.1%}"] = filtered(index, vectors, questions[::4], share)
    started = time.perf_counter()
    kept = np.setdiff1d(rows, some)
    compacted = inverted.compact(base, kept, rows[: len(some)] + args.rows, np.asarray(vectors[some]))
    path.with_suffix(".compacted").unlink(missing_ok=True)
    file.save(compacted, path.with_suffix(".compacted"))
    results["tandem"]["compact_and_save_s"] = round(time.perf_counter() - started, 2)
    started = time.perf_counter()
    for number in range(100):
        edited.changed(some[:1], np.array([3 * args.rows + number]), np.asarray(vectors[:1]))
    results["tandem"]["one_row_changed_ms"] = round(10 * (time.perf_counter() - started), 3)
    return results


def filtered(index: LayeredIndex, vectors: np.ndarray, questions: np.ndarray, share: float) -> dict[str, float]:
    random = np.random.default_rng(5)
    allowed = np.sort(random.choice(len(vectors), int(len(vectors) * share), replace=False))
    flat = FaissIndex.exact(allowed, np.asarray(vectors[allowed]))
    exact = LayeredIndex(flat)
    truth = np.asarray([[row for row, _ in exact.search(question, K)] for question in questions])
    times, found = [], []
    for question in questions:
        started = time.perf_counter()
        found.append([row for row, _ in index.search(question, K, allowed)])
        times.append(time.perf_counter() - started)
    return {"recall_mixed": round(recall(found, truth), 4), "p50_ms": round(1000 * float(np.median(times)), 3),
            "p95_ms": round(1000 * float(np.percentile(times, 95)), 3)}  # fmt: skip


def exact(args: argparse.Namespace, vectors: np.ndarray, questions: np.ndarray, truth: np.ndarray) -> dict:
    """Where exact search stops being fast."""
    faiss.omp_set_num_threads(1)
    results = {}
    for count in (10_000, 20_000, 30_000, 40_000, 60_000, 100_000):
        if count <= args.rows:
            index = LayeredIndex(FaissIndex.exact(np.arange(count), np.asarray(vectors[:count])))
            times = []
            for question in questions[:200]:
                started = time.perf_counter()
                index.search(question, K)
                times.append(1000 * (time.perf_counter() - started))
            results[f"exact, {count} rows"] = {
                "p50_ms": round(float(np.median(times)), 3), "p95_ms": round(float(np.percentile(times, 95)), 3)
            }  # fmt: skip
    return results


def is_near(vectors: np.ndarray, questions: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Which real questions have something to find; False for the made ones."""
    closest = np.einsum("qd,qd->q", questions, np.asarray(vectors[truth[:, 0]]))
    return (np.arange(len(questions)) >= MADE) & (closest >= NEAR)


def smallest(
    values: list[int], search: Callable[[int, np.ndarray], np.ndarray], questions: np.ndarray, truth: np.ndarray,
    near: np.ndarray,
) -> int:  # fmt: skip
    """The smallest parameter with recall TARGET for made questions and for near real ones, or the last."""
    made = np.arange(len(questions)) < MADE
    for value in values:
        if all(recall(search(value, questions[kind]).tolist(), truth[kind]) >= TARGET for kind in (made, near)):
            return value
    return values[-1]


def hnsw(args: argparse.Namespace, vectors: np.ndarray, questions: np.ndarray, truth: np.ndarray) -> dict:
    faiss.omp_set_num_threads(args.threads)
    before, started = memory()[0], time.perf_counter()
    index = faiss.IndexHNSWSQ(vectors.shape[1], faiss.ScalarQuantizer.QT_8bit, 16, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 80
    index.train(np.asarray(vectors[: min(len(vectors), 100_000)]))
    for start in range(0, len(vectors), BATCH):
        index.add(np.asarray(vectors[start : start + BATCH]))
    seconds, grown = time.perf_counter() - started, memory()[0] - before

    def many(ef: int, asked: np.ndarray) -> np.ndarray:
        index.hnsw.efSearch = ef
        return index.search(asked, K)[1]

    ef = smallest(EFFORTS, many, questions, truth, is_near(vectors, questions, truth))
    index.hnsw.efSearch = ef
    faiss.omp_set_num_threads(1)
    results = measure(
        {"hnsw": lambda question: index.search(question[None, :], K)[1][0].tolist()}, vectors, questions, truth
    )
    results["hnsw"] |= {
        "build_s": round(seconds, 1),
        "memory_mb": round(grown),
        "efSearch": ef,
        "M": 16,
        "efConstruction": 80,
    }
    return results


def usearch(args: argparse.Namespace, vectors: np.ndarray, questions: np.ndarray, truth: np.ndarray) -> dict:
    from usearch.index import Index

    before, started = memory()[0], time.perf_counter()
    index = Index(ndim=vectors.shape[1], metric="ip", dtype="i8", connectivity=16, expansion_add=80)
    for start in range(0, len(vectors), BATCH):
        batch = np.asarray(vectors[start : start + BATCH])
        index.add(np.arange(start, start + len(batch)), batch, threads=args.threads)
    seconds, grown = time.perf_counter() - started, memory()[0] - before

    def many(ef: int, asked: np.ndarray) -> np.ndarray:
        index.expansion_search = ef
        return np.asarray(index.search(asked, K).keys, np.int64)

    ef = smallest(EFFORTS, many, questions, truth, is_near(vectors, questions, truth))
    index.expansion_search = ef
    results = measure(
        {"usearch": lambda question: index.search(question, K, threads=1).keys.tolist()}, vectors, questions, truth
    )
    results["usearch"] |= {"build_s": round(seconds, 1), "memory_mb": round(grown), "expansion_search": ef,
                           "note": "int8, connectivity 16, expansion_add 80"}  # fmt: skip
    return results


def milvus(args: argparse.Namespace, vectors: np.ndarray, questions: np.ndarray, truth: np.ndarray) -> dict:
    from pymilvus import DataType, MilvusClient

    lists = max(1, round(4 * len(vectors) ** 0.5))
    before, started = memory()[0], time.perf_counter()
    place = args.work / f"milvus-{args.rows}-{os.getpid()}.db"
    client = MilvusClient(str(place))
    schema = client.create_schema(auto_id=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=vectors.shape[1])
    client.create_collection("rows", schema=schema)
    for start in range(0, len(vectors), 5000):
        batch = np.asarray(vectors[start : start + 5000])
        client.insert("rows", [{"id": start + n, "vector": row} for n, row in enumerate(batch)])
        if time.perf_counter() - started > args.limit:
            return {"milvus": {"note": f"stopped after {start + 5000} rows inserted in {args.limit} s"}}
    inserted = time.perf_counter() - started
    params = client.prepare_index_params()
    params.add_index("vector", index_type="IVF_SQ8", metric_type="IP", params={"nlist": lists})
    client.create_index("rows", params)
    client.load_collection("rows")
    seconds, grown = time.perf_counter() - started, memory()[0] - before

    def ask(probes: int, asked: np.ndarray) -> list[list[int]]:
        hits = client.search("rows", data=list(asked), limit=K, search_params={"params": {"nprobe": probes}})
        return [[hit["id"] for hit in row] for row in hits]

    ask(8, questions[:5])
    some = np.r_[0:50, MADE : MADE + 50]
    probes = next((n for n in (4, 16, 64, 256) if recall(ask(n, questions[some]), truth[some]) >= TARGET), 256)
    results = measure({"milvus": lambda question: ask(probes, question[None, :])[0]}, vectors, questions, truth, 16)
    results["milvus"] |= {"insert_s": round(inserted, 1), "build_s": round(seconds, 1), "memory_mb": round(grown),
                          "probes": probes, "note": f"IVF_SQ8, nlist {lists}"}  # fmt: skip
    return results


def table(results: dict[str, dict]) -> str:
    head = [
        "engine",
        "recall_made",
        "recall_near",
        "recall_far",
        "p50_ms",
        "p95_ms",
        "cpu_p50_ms",
        "build_s",
        "memory_mb",
        "mapped_mb",
        "notes",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, result in results.items():
        rest = ", ".join(f"{key} {value}" for key, value in result.items() if key not in head and key != "note")
        notes = "; ".join(part for part in (result.get("note", ""), rest) if part)
        lines.append("| " + " | ".join([name, *(str(result.get(key, "")) for key in head[1:-1]), notes]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embeddings", type=Path, required=True)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--engines", default="exact,tandem,hnsw,usearch,milvus")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--reuse", action="store_true", help="search Tandem's file of an earlier run of this size")
    parser.add_argument("--limit", type=float, default=400, help="seconds after which inserting into Milvus Lite stops")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    vectors, questions, truth = prepare(args)
    results = json.loads(args.json.read_text())["results"] if args.json.exists() else {}
    engines = {"exact": exact, "tandem": tandem, "hnsw": hnsw, "usearch": usearch, "milvus": milvus}
    for name in args.engines.split(","):
        results |= engines[name](args, vectors, questions, truth)
        machine = {
            "cpu": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version(),
            "faiss": version("faiss-cpu"), "numpy": version("numpy"), "load": round(os.getloadavg()[0], 1),
        }  # fmt: skip
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        body = {"rows": args.rows, "questions": len(questions), "machine": machine, "peak_mb": peak, "results": results}
        args.json.write_text(json.dumps(body, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
