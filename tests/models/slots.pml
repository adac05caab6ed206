/* SPDX-FileCopyrightText: The ipcbuf authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * slots.pml - seats: N processes claim one of SEATS, hold something in its name, leave or are
 * killed at any step (at most MAXC); whoever finds a dead one buries it; the seat is used again.
 *
 *   here         there
 *   claim        try_claim: the life byte, then the compare-and-swap (slots.cpp, S1)
 *   publish      publish_seat: the identity, then kAlive (L1)
 *   holds[s]     all that carries a token: locks, holds, blocks
 *   Reaper part  reap: the reaper word, still_there, what the dead held, the next generation (S2)
 *   leave        Segment::~Segment: we bury ourselves
 *
 * A life byte is free as soon as its process is gone; a seat whose process is gone is dead.
 *
 * With -DAGAIN -DSEATS=3 one of them comes a second time, so that a seat of the dead may be taken by
 * somebody else while an old verdict is still on its way.
 *
 * Proven: no two processes ever have the same token; nobody takes anything from the living; in the
 * end nothing belongs to the dead and every seat of theirs is free again.
 *
 * Each of these faults must be noticed:
 *   NO_GENERATION  (AGAIN) a seat comes back with its old token
 *   NO_LOOK        (AGAIN) a reaper that waited for the reaper word does not look again
 *   SEAT_FIRST     the seat is freed before what its process held
 *   NO_BYTE        a seat is claimed without its life byte, and one that is being claimed counts as dead
 */
#ifndef N
#define N 3
#endif
#ifndef MAXC
#define MAXC 2
#endif
#ifndef SEATS
#define SEATS 2
#endif
#define FREE_ 0
#define CLAIMING 1
#define ALIVE 2

byte state[SEATS], generation[SEATS];
byte byte_of[SEATS];      /* the life byte: who holds it, process + 1 */
byte sits[SEATS];         /* whose seat it really is, process + 1; what no process can read */
byte holds[SEATS];        /* generation + 1 of the token that holds something there */
byte reaper[SEATS];       /* the reaper word: process + 1 */
bool gone[N];
byte crashes = 0, finished = 0;

#define DIE if :: crashes < MAXC -> crashes++; goto killed :: skip fi
/* Proof of death: nobody holds the life byte. NO_BYTE has none to ask. */
#define IS_DEAD(s) (state[s] != FREE_ && (byte_of[s] == 0 || gone[byte_of[s] - 1]))
#define LET_GO(me) skip; d_step { \
  gone[me] = true; finished++; \
  if :: byte_of[0] == me + 1 -> byte_of[0] = 0 :: else -> skip fi; \
  if :: byte_of[1] == me + 1 -> byte_of[1] = 0 :: else -> skip fi }

/* reap(s) of the token with generation g */
inline bury(s, g) {
  if
  :: atomic { reaper[s] == 0 -> reaper[s] = me + 1 }
  :: atomic { reaper[s] != 0 && reaper[s] != me + 1 && gone[reaper[s] - 1] -> reaper[s] = me + 1 }
  :: reaper[s] == me + 1 -> skip
  fi;
  DIE;
  if
#ifdef NO_LOOK
  :: true ->
#else
  :: state[s] != FREE_ && generation[s] == g ->
#endif
     /* only the dead, or ourselves, are buried */
     assert(sits[s] == me + 1 || sits[s] == 0 || gone[sits[s] - 1]);
#ifdef SEAT_FIRST
     skip; d_step { state[s] = FREE_; generation[s] = g + 1; sits[s] = 0 };
     DIE;
     if :: holds[s] == g + 1 -> holds[s] = 0 :: else -> skip fi;
#else
     if :: holds[s] == g + 1 -> holds[s] = 0 :: else -> skip fi;
     DIE;
#ifdef NO_GENERATION
     skip; d_step { state[s] = FREE_; sits[s] = 0 };
#else
     skip; d_step { state[s] = FREE_; generation[s] = g + 1; sits[s] = 0 };  /* S2, the commit */
#endif
#endif
     DIE
  :: else -> skip
  fi;
  reaper[s] = 0
}

active [N] proctype Process() {
  byte me = _pid, s, g, h, k = 0;
  bool mine, last = false;
come:
  /* claim the first seat that is free */
  s = 0; k = 0; h = 0;
  do
  :: s < SEATS ->
     DIE;
     mine = false;
     if
     :: state[s] == FREE_ ->
#ifndef NO_BYTE
        atomic { if :: byte_of[s] == 0 -> byte_of[s] = me + 1; mine = true :: else -> skip fi };
#else
        mine = true;
#endif
        DIE;
        if
        :: mine ->
           g = generation[s];
           atomic {
             if :: state[s] == FREE_ && generation[s] == g -> state[s] = CLAIMING; sits[s] = me + 1
                :: else -> mine = false; if :: byte_of[s] == me + 1 -> byte_of[s] = 0 :: else -> skip fi fi }
        :: else -> skip
        fi;
        if :: mine -> break :: else -> skip fi
     :: else -> skip
     fi;
     s++
  :: else -> break
  od;
  if :: s == SEATS -> goto killed :: else -> skip fi;            /* TooManyProcesses */
  DIE;
#ifdef NO_BYTE
  byte_of[s] = me + 1;
#endif
  state[s] = ALIVE;                                              /* publish */
  DIE;
  assert(holds[s] == 0);                                         /* nothing is left of who sat here */
  holds[s] = g + 1;
  DIE;
  /* attach looks at every seat; so does a waiter */
  k = 0;
  do
  :: k < SEATS ->
     if
     :: atomic { k != s && IS_DEAD(k) -> h = generation[k] }  /* the verdict is about one token */
        DIE; bury(k, h)                        /* meanwhile the seat may have changed hands */
     :: !(k != s && IS_DEAD(k)) -> skip
     fi;
     k++
  :: else -> break
  od;
  assert(holds[s] == g + 1 && sits[s] == me + 1 && generation[s] == g);  /* nobody took it from us */
  bury(s, g);                                                    /* leave */
#ifdef AGAIN
  if
  :: me == 2 && !last ->                                         /* one of them comes again */
     d_step { last = true; if :: byte_of[s] == me + 1 -> byte_of[s] = 0 :: else -> skip fi };
     goto come
  :: else -> skip
  fi;
#endif
killed:
  LET_GO(me);
}

/* The next who comes in: everything that the dead left is found and buried. */
active proctype Last() {
  byte me = N, s = 0;
  (finished == N);
  do
  :: s < SEATS ->
     if :: IS_DEAD(s) -> reaper[s] = 0; if :: holds[s] == generation[s] + 1 -> holds[s] = 0 :: else -> skip fi; state[s] = FREE_
        :: else -> skip fi;
     assert(holds[s] == 0 && state[s] == FREE_);
     s++
  :: else -> break
  od
}
