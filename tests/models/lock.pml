/* SPDX-FileCopyrightText: The ipcbuf authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * lock.pml - the owner word with its waiters: N processes go in and out, up to MAXC of them are
 * killed, each at any step.
 *
 *   here            there (owner_word.hpp)
 *   Process         OwnerWord::acquire, from the loop behind the spinning
 *   the first if    word 0: compare-and-swap; a dead owner: take-over, recover (O3)
 *   FUTEX_WAIT      sleeps only if the word is still what was seen; ends with its slice
 *   leave           OwnerWord::release: exchange, then wake one
 *
 * Proven: one is inside (O1), nobody takes it from the living (O2), who took it over has recovered
 * (O3), nobody waits for ever; between the living not even without slices (-DUNSLICED -DMAXC=0):
 * the flag kWaiters is never lost.
 *
 * Each of these faults must be noticed:
 *   NO_TAKEOVER  the lock of the dead stays his     ROBS      a slow owner counts as dead
 *   NO_RECOVER   taken over as it is                UNSLICED  with kills: waits for a wake-up alone
 *   DROPS_FLAG   (UNSLICED, MAXC=0) who slept takes the word without kWaiters
 */
#ifndef N
#define N 3
#endif
#ifndef MAXC
#define MAXC 2
#endif
#ifndef ROUNDS
#define ROUNDS 1
#endif
#define W 128 /* kWaiters */
#define OWNER(w) ((w) & 127)
#ifdef ROBS
#define DEAD(w) true
#elif defined(NO_TAKEOVER)
#define DEAD(w) false
#else
#define DEAD(w) dead[OWNER(w)]
#endif

byte word = 0, inside = 0, crashes = 0;
bool dead[N + 1], asleep[N + 1];
bool torn = false; /* what the lock guards is in the middle of a change */

#define DIE    if :: crashes < MAXC -> crashes++; goto killed :: skip fi
#define DIE_IN if :: crashes < MAXC -> crashes++; inside--; goto killed :: skip fi

proctype Process(byte me) {
  byte seen, mine = me, rounds = 0;
  bool slept = false;
again:
  DIE;
  seen = word;
  if
  :: seen == 0 -> atomic { if :: word == 0 -> word = mine; inside++ :: else -> goto again fi }
  :: seen != 0 && slept && DEAD(seen) ->
     atomic { if :: word == seen -> word = me | W; inside++ :: else -> goto again fi };
     DIE_IN;
#ifndef NO_RECOVER
     torn = false;
#endif
     DIE_IN
  :: seen != 0 && !(slept && DEAD(seen)) ->
     if :: (seen & W) == 0 ->
           atomic { if :: word == seen -> word = seen | W; seen = word :: else -> goto again fi }
        :: else -> skip fi;
     DIE;
     atomic { if :: word == seen -> asleep[me] = true :: else -> skip fi }; /* FUTEX_WAIT */
     if :: !asleep[me]
#ifndef UNSLICED
        :: word != seen || DEAD(seen) -> asleep[me] = false /* the slice ends: something is to be seen */
#endif
     fi;
#ifndef DROPS_FLAG
     mine = me | W;
#endif
     slept = true;
     seen = 0;
     goto again
  fi;
  assert(inside == 1 && !torn);
  torn = true;
  DIE_IN;
  torn = false;
  DIE_IN;
  atomic { seen = word & W; word = 0; inside-- }; /* leave */
  if
  :: seen != 0 ->
     DIE;
     atomic { /* FUTEX_WAKE 1: whom the kernel likes */
       if
       :: asleep[1] -> asleep[1] = false
       :: asleep[2] -> asleep[2] = false
       :: asleep[3] -> asleep[3] = false
#if N > 3
       :: asleep[4] -> asleep[4] = false
#endif
       :: else -> skip
       fi
     }
  :: else -> skip
  fi;
  atomic { mine = me; slept = false; seen = 0; rounds++ };
  if :: rounds < ROUNDS -> goto again :: else -> goto out fi;
killed:
  dead[me] = true;
out: skip
}

init {
  atomic {
    run Process(1); run Process(2); run Process(3);
#if N > 3
    run Process(4);
#endif
  }
}
