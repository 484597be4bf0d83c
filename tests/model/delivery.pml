/* delivery.pml - the delivery and state protocol as a model for Spin.  What it is about: docs/reliability.md.
 *
 * One shard with one run: its jobs log, its results log, its row in Postgres, Redis, and the processes around
 * them.  Each step is one write to one store, or one read of it; between any two steps anything else may happen.
 *
 * Workers.  Worker(1) .. Worker(WORKERS) are processes in the order in which they take the shard over, each with
 * the next epoch.  Nothing says that the one before is dead: a lease may end at any time, all may be alive at
 * once, and each may stop for good after any step, because nobody has to be scheduled.  So a crash is a worker
 * that takes no further step, and a zombie one that takes it late.  Only the last one must get through, so that
 * there is an end to look at.
 *
 * Records on their way.  out[w] is what worker w has sent and the log has not got yet: in order, for as long as
 * one likes, and at any moment what is left may be lost.
 *
 * What a job does.  Its effect is one bit in the state of the run.  Attempts need not agree: each execution
 * chooses freely between ok (with effect) and failed (without), so nothing here is right only because the
 * arithmetic is repeatable.
 *
 * What is true.  top, official, okay and decided follow the results log from its first record; no process reads
 * them.
 *
 * WITHOUT_x takes the rule x out, to see that it is needed; run.py knows them all.  KEEP_FILES adds the files of
 * snapshots and who deletes them; RESTORED adds a database that comes back from a backup with an older epoch. */

#ifndef JOBS
#define JOBS 2 /* 1 to 4 */
#endif
#ifndef WORKERS
#define WORKERS 3 /* 2 to 4 */
#endif
#ifndef FLUSHES
#define FLUSHES 1 /* of Redis */
#endif

#if JOBS > 2 && !defined(WITHOUT_READERS)
#error "the readers know two jobs at most"
#endif

/* ------------------------------------------------------------------ records */

/* Who wrote it under which epoch; seq 0 is a barrier; does it say ok; the state on which it was computed. */
#define RECORD(w, ep, seq, ok, base) ((w) | ((ep) << 3) | ((seq) << 6) | ((ok) << 9) | ((base) << 10))
#define WRITER(r) ((r) & 7)
#define EPOCH(r)  (((r) >> 3) & 7)
#define SEQ(r)    (((r) >> 6) & 7)
#define OK(r)     (((r) >> 9) & 1)
#define BASE(r)   ((r) >> 10)

#define BIT(seq)      (1 << ((seq) - 1))
#define BELOW(seq)    (BIT(seq) - 1)
#define UPTO(seq)     ((1 << (seq)) - 1)
#define HAS(set, seq) (((set) >> ((seq) - 1)) & 1)

/* Which job lies where in the jobs log: not in the order in which they are due.  All are there from the start; one that
 * comes later is the same as a worker that reads later. */
#if JOBS == 1
#define JOB_AT(offset) 1
#elif JOBS == 2
#define JOB_AT(offset) (2 - (offset))
#elif JOBS == 3
#define JOB_AT(offset) ((offset) == 0 -> 2 : ((offset) == 1 -> 1 : 3))
#else
#define JOB_AT(offset) ((offset) == 0 -> 2 : ((offset) == 1 -> 1 : ((offset) == 2 -> 4 : 3)))
#endif
#define OFFSET_OF(seq) (JOB_AT(0) == (seq) -> 0 : (JOB_AT(1) == (seq) -> 1 : (JOB_AT(2) == (seq) -> 2 : 3)))

/* ------------------------------------------------------------------ the stores */

short results[WORKERS * (JOBS + 1)]; /* Kafka */
byte end;
chan out[WORKERS + 1] = [JOBS + 1] of { short };
bool broken[WORKERS + 1]; /* a delivery failed */

byte row_epoch, row_owner; /* Postgres: the shard's row */
byte row_resume, row_scan, row_scan_epoch;
byte snap_seq, snap_state; /* the run's newest snapshot */
#ifdef KEEP_FILES
byte snap_writer, files[WORKERS + 1]; /* who wrote its files; whose files are there: sets of jobs */
#endif
byte bill_next, bill_epoch; /* billing's cursor */
byte billed[JOBS + 1];      /* whose record was billed; 0: none */

bool has_cursor; /* Redis */
byte cursor_next, cursor_epoch;
byte future[JOBS + 1]; /* whose record a client would get; 0: none */
byte flushes;

byte started; /* workers that have taken the shard over */

/* ------------------------------------------------------------------ what is true */

byte top;                /* highest epoch in the log */
byte official[JOBS + 1]; /* who wrote the official record; 0: nothing is decided */
byte okay, decided;      /* sets of jobs */

/* Of one step only, so no part of a state; but Spin's breadth-first search wants them to be. */
#ifdef SHORTEST
#define SCRATCH
#else
#define SCRATCH hidden
#endif
SCRATCH byte at, seen, limit;
SCRATCH short rec;

/* What the search must have come through to prove anything: counted by the verifier, no part of a state. */
c_decl {
\#include <stdio.h>
\#include <stdlib.h>
    enum {
        FENCED, STALE_COUNTS, DISAGREED, REDONE, LEFT, LOST, WROTE, REFUSED, REBUILT, COLD, CONFLICT, FAR_SCAN,
        REACHES
    };
    static const char *const reach_names[REACHES] = {
        "a record of a stale worker was skipped", "a record of a stale worker counted, before the barrier",
        "a skipped record disagreed with the official one", "a replay redid an effect",
        "a replay left a failed job alone", "records were lost on their way", "a snapshot was written",
        "a stale snapshot was refused", "a cursor lost with Redis was rebuilt from billing's",
        "a future came by the cold path", "a script found another cursor", "a scan began after the first record"};
    static unsigned long reach_count[REACHES];
    static void reach_tell(void)
    {
        for (int i = 0; i < REACHES; i++)
            printf("reached: %s: %lu\n", reach_names[i], reach_count[i]);
    }
}
#define REACHED(what) c_code { reach_count[what]++; }

/* rec comes into the log.  The first record of a job that no higher epoch precedes is official, whoever wrote it. */
inline judge()
{
    if
    :: EPOCH(rec) < top ->
        REACHED(FENCED);
        if
        :: SEQ(rec) && HAS(decided, SEQ(rec)) && OK(rec) != HAS(okay, SEQ(rec)) -> REACHED(DISAGREED)
        :: else
        fi
    :: EPOCH(rec) >= top && SEQ(rec) == 0 -> top = EPOCH(rec)
    :: EPOCH(rec) >= top && SEQ(rec) && official[SEQ(rec)] ->
        top = EPOCH(rec);
#ifndef COPIES_ALLOWED
        assert(!official[SEQ(rec)]) /* no second record of a job counts */
#endif
    :: EPOCH(rec) >= top && SEQ(rec) && !official[SEQ(rec)] ->
        top = EPOCH(rec);
        official[SEQ(rec)] = WRITER(rec);
        decided = decided | BIT(SEQ(rec));
        okay = okay | (OK(rec) << (SEQ(rec) - 1));
        /* It was computed on just what the official results before it add up to. */
        assert((decided & BELOW(SEQ(rec))) == BELOW(SEQ(rec)));
        assert(BASE(rec) == (okay & BELOW(SEQ(rec))));
        /* No client has been told anything else. */
        assert(!future[SEQ(rec)] || future[SEQ(rec)] == WRITER(rec));
        if
        :: WRITER(rec) < started -> REACHED(STALE_COUNTS)
        :: else
        fi
    fi
}

/* ------------------------------------------------------------------ Kafka */

/* A delivery that failed is the end of its producer: what is queued behind it is lost too. */
proctype Wire(byte me)
{
end_quiet:
    do
    :: d_step {
        out[me]?rec;
        results[end] = rec;
        end++;
        judge();
    }
#ifdef WITHOUT_GAPLESS
    :: d_step { nempty(out[me]) && me < WORKERS -> out[me]?rec; broken[me] = 1; REACHED(LOST) }
#else
    :: d_step {
        nempty(out[me]) && me < WORKERS ->
            broken[me] = 1;
            do
            :: out[me]?rec
            :: empty(out[me]) -> break
            od;
            REACHED(LOST)
    }
#endif
    od
}

/* ------------------------------------------------------------------ a worker */

#define ACKED   (empty(out[me]) && !broken[me])
#define IS_MINE (row_owner == me && row_epoch == epoch)

/* The rules, each with its absence. */
#ifdef WITHOUT_KNOWN_RESULTS
#define IS_KNOWN false
#else
#define IS_KNOWN (applied < JOBS && HAS(known, applied + 1))
#endif
#ifdef WITHOUT_GAPLESS
#define IS_WELL true
#else
#define IS_WELL (!broken[me])
#endif
#define IS_DUE (applied < JOBS && !IS_KNOWN && OFFSET_OF(applied + 1) >= resume && IS_WELL)
#ifdef WITH_LEASE
#define MAY_SEND (row_owner == me)
#else
#define MAY_SEND true
#endif
#ifdef WITHOUT_ACKS_BEFORE_SNAPSHOT
#define SNAPSHOT_READY (!broken[me])
#else
#define SNAPSHOT_READY ACKED
#endif
#ifdef WITHOUT_EPOCH_AT_SNAPSHOT
#define SNAPSHOT_ALLOWED true
#else
#define SNAPSHOT_ALLOWED IS_MINE
#endif

/* Results from the row's position up to my own barrier, under the reading rule. */
inline scan()
{
    do
    :: from < end ->
        rec = results[from];
        from++;
        if
        :: EPOCH(rec) < high
        :: EPOCH(rec) >= high ->
            high = EPOCH(rec);
            if
            :: SEQ(rec) && !HAS(known, SEQ(rec)) ->
                known = known | BIT(SEQ(rec));
                known_ok = known_ok | (OK(rec) << (SEQ(rec) - 1))
            :: else
            fi
        fi;
#if !defined(WITHOUT_BARRIER) && !defined(WITHOUT_SCAN_TO_BARRIER)
        if
        :: WRITER(rec) == me -> break /* what follows of older epochs does not count */
        :: else
        fi
#endif
    :: from == end -> break
    od;
    from = 0
}

/* The row's log positions: the lowest job and the lowest result that a successor needs, with the epoch in force
 * there. */
inline positions()
{
#ifdef WITHOUT_RESUME_BELOW
    row_resume = JOBS;
#else
    row_resume = 0;
    do
    :: row_resume < JOBS && JOB_AT(row_resume) <= snap_seq -> row_resume++
    :: else -> break
    od;
#endif
    limit = end; /* what I know is what I wrote last, and all before it */
    do
    :: limit > row_scan && WRITER(results[limit - 1]) != me -> limit--
    :: else -> break
    od;
    seen = row_scan_epoch;
    at = row_scan;
#ifdef WITHOUT_SCAN_BELOW
    at = end;
#endif
    do
    :: at >= limit -> seen = epoch; break
    :: at < limit && EPOCH(results[at]) < seen -> at++
    :: at < limit && EPOCH(results[at]) >= seen ->
        seen = EPOCH(results[at]);
        if
        :: SEQ(results[at]) > snap_seq -> break
        :: else -> at++
        fi
    od;
    row_scan = at;
    row_scan_epoch = seen
}

inline snapshot()
{
    snap_seq = applied;
    snap_state = state;
#ifdef KEEP_FILES
    snap_writer = me;
    assert(HAS(files[me], applied));
#endif
    /* It is the sum of the official results up to its job. */
    assert((decided & UPTO(applied)) == UPTO(applied));
    assert(state == (okay & UPTO(applied)));
    REACHED(WROTE);
    positions()
}

#ifdef KEEP_FILES
/* Files that no row named go; not those of a later epoch, for what was read of the rows may be old by now. */
inline clean()
{
    at = 1;
    do
    :: at <= WORKERS ->
        if
#ifdef WITHOUT_EPOCH_AT_CLEANING
        :: at != keep_writer -> files[at] = 0
#else
        :: at != keep_writer && at <= me -> files[at] = 0
#endif
        :: at == keep_writer -> files[at] = files[at] & BIT(keep_seq)
        :: else
        fi;
        at++
    :: at > WORKERS -> break
    od;
    at = 0;
    keep_writer = 0;
    keep_seq = 0;
    assert(HAS(files[snap_writer], snap_seq)) /* the files of the newest snapshot are there */
}
#endif

inline execute(ok)
{
    rec = RECORD(me, epoch, applied + 1, ok, state);
    applied++;
    assert(!HAS(state, applied)); /* no effect twice */
    state = state | (ok << (applied - 1));
    out[me]!rec;
    rec = 0
}

proctype Worker(byte me)
{
    byte epoch, high, from, resume;
    byte known, known_ok; /* what the log had decided before me: sets of jobs */
    byte applied, state;  /* memory: the run's state after job `applied` */
#ifdef KEEP_FILES
    byte keep_writer, keep_seq;
#endif

    d_step {
        started == me - 1 -> /* the lease of the one before has ended, or so it seems */
            started = me;
            row_epoch++;
            row_owner = me;
            epoch = row_epoch;
            from = row_scan;
            high = row_scan_epoch;
            resume = row_resume;
            if
            :: from > 0 -> REACHED(FAR_SCAN)
            :: else
            fi
    }
#ifdef WITHOUT_SCAN_EPOCH
    high = 0;
#endif
#ifdef WITHOUT_SCAN_TO_BARRIER
    d_step { scan() }
#endif
#ifndef WITHOUT_BARRIER
    out[me]!RECORD(me, epoch, 0, 0, 0);
    if
    :: ACKED
    :: atomic { broken[me] -> broken[me] = 0; goto gone }
    fi;
#endif
#ifndef WITHOUT_SCAN_TO_BARRIER
    d_step { scan() }
#endif
    if
    :: high > epoch -> goto gone /* overtaken */
    :: else -> high = 0
    fi;
    d_step { applied = snap_seq; state = snap_state }

    do
    /* A job whose result is known: its effect only, and only if it had one. */
    :: d_step {
        IS_KNOWN && IS_WELL ->
            applied++;
            known = known & ~BIT(applied);
#ifdef WITHOUT_KNOWN_STATUS
            state = state | BIT(applied);
#else
            if
            :: HAS(known_ok, applied) ->
                assert(!HAS(state, applied)); /* no effect twice */
                state = state | BIT(applied);
                REACHED(REDONE)
            :: else -> REACHED(LEFT)
            fi;
#endif
            known_ok = known_ok & ~BIT(applied)
    }
    /* A job that is not decided: execute, send.  A pause between them is a record that is long on its way. */
    :: d_step { IS_DUE && MAY_SEND -> execute(1) }
    :: d_step { IS_DUE && MAY_SEND -> execute(0) }
    /* A snapshot: all acked, files, then state and positions in one transaction that looks at the epoch. */
#ifdef KEEP_FILES
    :: d_step { applied > snap_seq && SNAPSHOT_READY -> files[me] = files[me] | BIT(applied) }
       if
       :: d_step { SNAPSHOT_ALLOWED -> snapshot() }
       :: !(SNAPSHOT_ALLOWED) -> goto gone
       fi;
       d_step { keep_writer = snap_writer; keep_seq = snap_seq } /* which files do rows name? */
       d_step { clean() }
#else
    :: d_step { applied > snap_seq && SNAPSHOT_READY && SNAPSHOT_ALLOWED -> snapshot() }
    :: atomic { applied > snap_seq && SNAPSHOT_READY && !(SNAPSHOT_ALLOWED) -> REACHED(REFUSED); goto gone }
#endif
    /* Positions alone. */
    :: d_step { ACKED && IS_MINE -> positions() }
#ifdef WORKERS_WRITE_REDIS
    :: d_step { applied > 0 && ACKED && !HAS(known, applied) && !future[applied] -> future[applied] = me }
#endif
    /* A job that nobody will run: read past, not decided, not in the state. */
    :: d_step { applied < JOBS && !IS_KNOWN && OFFSET_OF(applied + 1) < resume -> assert(IS_DUE) }
#ifdef WITH_LEASE
    :: row_owner != me && me < WORKERS -> goto gone
#endif
    :: atomic { broken[me] -> broken[me] = 0; goto gone }
    :: atomic {
        applied == JOBS && ACKED ->
            assert(me < WORKERS || (decided == UPTO(JOBS) && state == okay)); /* nothing is lost */
            break
       }
    od;
gone:
    atomic {
        assert(me < WORKERS || applied == JOBS); /* the last one gets through */
        /* What it remembers is of no more use: states that differ in nothing else become one. */
        epoch = 0; from = 0; high = 0; resume = 0; known = 0; known_ok = 0; applied = 0; state = 0
    }
}

#ifdef RESTORED
/* The row comes back from a backup.  Whoever restores it raises its epoch above all that were ever handed out. */
proctype Restore()
{
end_quiet:
    atomic {
        started > 0 && started < WORKERS - 1 ->
            row_owner = 0;
#ifdef WITHOUT_RAISED_EPOCH
            row_epoch--
#else
            row_epoch++
#endif
    }
}
#endif

/* ------------------------------------------------------------------ readers */

/* What Redis's cursor has passed is in Redis or in billing's rows; asked where the cursor has passed all. */
inline look_all_served()
{
    at = 1;
    do
    :: at <= JOBS ->
        assert(!(has_cursor && cursor_next == end) || !official[at] || future[at] || billed[at]);
        at++
    :: at > JOBS -> break
    od;
    at = 0
}

inline look_all_billed()
{
    at = 1;
    do
    :: at <= JOBS ->
        assert(bill_next < end || billed[at] == official[at]);
        at++
    :: at > JOBS -> break
    od;
    at = 0
}

inline bill_row()
{
    if
    :: SEQ(rec) && !billed[SEQ(rec)] ->
        billed[SEQ(rec)] = WRITER(rec);
        assert(billed[SEQ(rec)] == official[SEQ(rec)]) /* the official record, and no other */
    :: SEQ(rec) && billed[SEQ(rec)] ->
#if defined(WITHOUT_KEY) || defined(WITHOUT_CURSOR_IN_TRANSACTION_OR_KEY)
        assert(!billed[SEQ(rec)]) /* nothing is billed twice */
#else
        skip /* the key keeps it out */
#endif
    :: else
    fi
}

/* One record a transaction: more at once pass through fewer states, not through others.  A second consumer finds the
 * cursor moved and does nothing. */
proctype Billing()
{
    bool counts;
end_quiet:
    do
    :: d_step {
        bill_next < end ->
            rec = results[bill_next];
#ifdef WITHOUT_RULE_IN_BILLING
            counts = 1;
#else
            counts = EPOCH(rec) >= bill_epoch;
#endif
            if
            :: counts -> bill_epoch = EPOCH(rec)
            :: else
            fi;
#if defined(WITHOUT_CURSOR_IN_TRANSACTION)
            bill_next++
       }
       if
       :: d_step { rec = results[bill_next - 1]; if :: counts -> bill_row() :: else fi; look_all_billed(); counts = 0 }
       :: counts = 0 /* killed */
       fi
#elif defined(WITHOUT_CURSOR_IN_TRANSACTION_OR_KEY)
            if
            :: counts -> bill_row()
            :: else
            fi;
            counts = 0
       }
       if
       :: d_step { bill_next++; look_all_billed() }
       :: true /* killed */
       fi
#else
            if
            :: counts -> bill_row()
            :: else
            fi;
            counts = 0;
            bill_next++;
            look_all_billed()
       }
#endif
    od
}

inline settle(record)
{
    rec = record;
    if
    :: SEQ(rec) && !future[SEQ(rec)] ->
        future[SEQ(rec)] = WRITER(rec);
        assert(future[SEQ(rec)] == official[SEQ(rec)])
    :: else
    fi
}

/* One script a record: compare the cursor, set the future, move the cursor. */
proctype Resolver()
{
    bool seated, create, counts;
    byte next, epoch;
end_quiet:
    do
    :: d_step {
        !seated ->
            seated = 1;
            if
            :: has_cursor -> next = cursor_next; epoch = cursor_epoch
            :: !has_cursor ->
                create = 1;
#ifdef WITHOUT_BILLINGS_CURSOR
                next = end;
                epoch = top;
#else
                next = bill_next;
                epoch = bill_epoch;
#endif
#ifdef WITHOUT_REBUILD_EPOCH
                epoch = 0;
#endif
                if
                :: next > 0 -> REACHED(REBUILT)
                :: else
                fi
            fi
    }
    :: d_step {
        seated && next < end ->
            counts = EPOCH(results[next]) >= epoch;
#ifdef WITHOUT_RULE_IN_RESOLVER
            counts = 1;
#endif
            if
#ifdef WITHOUT_COMPARE
            :: true ->
#else
            :: (has_cursor && cursor_next == next && cursor_epoch == epoch) || (!has_cursor && create) ->
#endif
                has_cursor = 1;
                if
                :: counts -> epoch = EPOCH(results[next])
                :: else
                fi;
                cursor_epoch = epoch;
                next++;
                cursor_next = next;
                create = 0;
#ifndef WITHOUT_ONE_SCRIPT
                if
                :: counts -> settle(results[next - 1])
                :: else
                fi;
                counts = 0;
                look_all_served()
#endif
#ifndef WITHOUT_COMPARE
            :: else ->
                REACHED(CONFLICT);
                seated = 0;
                create = 0;
                counts = 0;
                next = 0;
                epoch = 0
#endif
            fi
       }
#ifdef WITHOUT_ONE_SCRIPT
       if
       :: d_step { counts -> settle(results[next - 1]); counts = 0 }
       :: d_step { !counts -> look_all_served() }
       :: d_step { counts -> counts = 0; look_all_served() } /* killed */
       fi
#endif
    :: d_step { seated -> seated = 0; create = 0; next = 0; epoch = 0 } /* killed */
    od
}

/* Everything in Redis goes at once. */
proctype Flush()
{
end_quiet:
    do
    :: d_step {
        flushes < FLUSHES && (has_cursor || future[1] || future[JOBS]) ->
            flushes++;
            at = 1;
            do
            :: at <= JOBS -> future[at] = 0; at++
            :: at > JOBS -> break
            od;
#ifndef WITHOUT_CURSOR_IN_REDIS
            has_cursor = 0;
            cursor_next = 0;
            cursor_epoch = 0;
#endif
            look_all_served()
    }
    od
}

/* The gateway does not find a future in Redis, billing has a row, and the record is read where the row says. */
proctype Cold()
{
    byte j;
end_quiet:
    do
    :: d_step {
        (billed[1] && !future[1]) || (billed[JOBS] && !future[JOBS]) ->
            if
            :: billed[1] && !future[1] -> j = 1
            :: else -> j = JOBS
            fi;
            future[j] = billed[j];
            j = 0;
            REACHED(COLD)
    }
    od
}

init {
    c_code { atexit(reach_tell); }
    atomic {
        at = 1;
        do
        :: at <= WORKERS -> run Worker(at); run Wire(at); at++
        :: at > WORKERS -> at = 0; break
        od;
#ifdef RESTORED
        run Restore();
#endif
#ifndef WITHOUT_READERS
        run Billing();
        run Resolver();
        run Flush();
        run Cold()
#endif
    }
}
