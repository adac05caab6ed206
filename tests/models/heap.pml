/* SPDX-FileCopyrightText: The ipcbuf authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * heap.pml - the owner word and what it guards: N processes allocate a run and give it back, up to
 * MAXC of them are killed, each at any step, also while they recover or bury.
 *
 *   here                       there
 *   P, from `again`            OwnerWord::acquire     (owner_word.hpp; its waiters are in lock.pml)
 *   recover()                  RunHeap::rebuild       (run_heap.cpp)
 *   the split, the growth      RunHeap::allocate, grow
 *   the merge                  RunHeap::free
 *   bury()                     reap, step 5: half-made runs of the dead (reaper.cpp)
 *   leave                      OwnerWord::release
 *   WALK                       R1: the walk from page 0 ends exactly at committed_pages
 *   cached == FREE             R3: what rebuild recomputes
 *
 * Proven: one is inside (O1), the walk is possible in every state (R1), the caches are right
 * whenever somebody came in (R3), and in the end no run is left with the dead.
 *
 * Each of these faults must be noticed:
 *   NO_RECOVER  the lock is taken over as it is        NO_BURIAL  half-made runs of the dead stay
 *   HEAD_FIRST  a split shortens the first run before the tail has its word
 *   GROW_FIRST  committed_pages moves before the new run has its word
 */
#ifndef N
#define N 3
#endif
#ifndef MAXC
#define MAXC 2
#endif
#define PAGES 3

/* A run word is one store in the code, so its three parts change in one step here. */
typedef Run { byte state; byte length; byte token }
#define NONE 0
#define FREE_ 1
#define RESERVED 2
Run desc[PAGES];
byte committed = 2;
byte cached = 2;                  /* free_pages, and with it the index: rebuilt by the walk */
byte word = 0;                    /* the owner word; its waiters are in lock.pml */
bool dead[N + 1];
byte inside = 0, crashes = 0, living = N;

#define SET(p, s, l, t) d_step { desc[p].state = s; desc[p].length = l; desc[p].token = t }
#define AFTER(p) ((p) + desc[p].length)
#define ENDS(p) (desc[p].length > 0 && AFTER(p) <= committed)
#define WALK (ENDS(0) && (AFTER(0) == committed || (ENDS(AFTER(0)) && \
             (AFTER(AFTER(0)) == committed || (ENDS(AFTER(AFTER(0))) && \
              AFTER(AFTER(AFTER(0))) == committed)))))

#define DIE    if :: crashes < MAXC -> d_step { crashes++; dead[me] = true; if :: !counted -> living-- :: else -> skip fi }; goto killed \
                  :: skip fi
#define DIE_IN if :: crashes < MAXC -> d_step { crashes++; dead[me] = true; if :: !counted -> living-- :: else -> skip fi; inside-- }; \
                     goto killed \
                  :: skip fi

/* The walk, merging free neighbours; everything it computes is local until it is stored. */
inline recover() {
  d_step { p = 0; sum = 0 };
  do
  :: p < committed ->
     assert(ENDS(p));
     if
     :: desc[p].state == FREE_ ->
        do
        :: AFTER(p) < committed && desc[AFTER(p)].state == FREE_ ->
           SET(p, FREE_, desc[p].length + desc[AFTER(p)].length, 0); DIE_IN
        :: else -> break
        od;
        sum = sum + desc[p].length
     :: else -> skip
     fi;
     p = AFTER(p)
  :: else -> break
  od;
  cached = sum
}

/* Called inside. A run goes free and takes its free neighbours along: one store (R2). */
inline give_back(q) {
  p = q; size = desc[q].length; freed = size;
  if :: AFTER(q) < committed && desc[AFTER(q)].state == FREE_ -> size = size + desc[AFTER(q)].length
     :: else -> skip fi;
  /* The code finds the run in front by the way back that its last page knows (R3). */
  if :: q > 0 && AFTER(0) == q && desc[0].state == FREE_ -> p = 0; size = size + desc[0].length
     :: q == 2 && AFTER(0) == 1 && AFTER(1) == 2 && desc[1].state == FREE_ -> p = 1; size = size + 1
     :: else -> skip fi;
  DIE_IN; SET(p, FREE_, size, 0);   /* the commit */
  DIE_IN; cached = cached + freed
}

inline bury() {
#ifndef NO_BURIAL
  do
  :: desc[0].state == RESERVED && dead[desc[0].token] -> give_back(0)
  :: committed > 1 && AFTER(0) <= 1 && desc[1].state == RESERVED && dead[desc[1].token] -> give_back(1)
  :: committed > 2 && (AFTER(0) == 2 || (AFTER(0) == 1 && AFTER(1) == 2)) &&
     desc[2].state == RESERVED && dead[desc[2].token] -> give_back(2)
  :: else -> break
  od
#else
  skip
#endif
}

#define FIND(first) \
  if :: desc[0].state == FREE_ -> first = 0 \
     :: else -> \
        if :: AFTER(0) < committed && desc[AFTER(0)].state == FREE_ -> first = AFTER(0) \
           :: else -> \
              if :: AFTER(0) < committed && AFTER(AFTER(0)) < committed && \
                    desc[AFTER(AFTER(0))].state == FREE_ -> first = AFTER(AFTER(0)) \
                 :: else -> first = PAGES fi fi fi

proctype P(byte me) {
  byte seen, p, sum, size, freed, own = PAGES, task = 0;
  bool counted = false;
again:
  DIE;
  seen = word;
  if
  :: seen == 0 -> atomic { if :: word == 0 -> word = me; inside++ :: else -> goto again fi }
  :: seen != 0 && dead[seen] ->
     atomic { if :: word == seen -> word = me; inside++ :: else -> goto again fi };
     DIE_IN;
#ifndef NO_RECOVER
     recover();
#endif
     DIE_IN
  :: seen != 0 && !dead[seen] -> (word != seen || dead[seen]); goto again
  fi;
  d_step { seen = 0; p = 0; sum = 0 };
  assert(inside == 1);                                           /* O1 */
  assert(WALK);                                                  /* R1 */
  assert(cached == (desc[0].state == FREE_ -> desc[0].length : 0) +
         (AFTER(0) < committed && desc[AFTER(0)].state == FREE_ -> desc[AFTER(0)].length : 0) +
         (AFTER(0) < committed && AFTER(AFTER(0)) < committed &&
          desc[AFTER(AFTER(0))].state == FREE_ -> desc[AFTER(AFTER(0))].length : 0));  /* R3 */
  if
  :: task == 0 ->                                                /* allocate one page */
     bury();
     FIND(p);
     if
     :: p == PAGES && committed < PAGES ->                       /* grow */
        DIE_IN;
#ifdef GROW_FIRST
        committed = PAGES; DIE_IN; SET(2, FREE_, 1, 0);
#else
        SET(2, FREE_, 1, 0); DIE_IN; committed = PAGES;          /* the commit */
#endif
        DIE_IN; cached = cached + 1; p = 2
     :: else -> skip
     fi;
     if
     :: p == PAGES -> skip                                       /* kExhausted */
     :: p != PAGES && desc[p].length == 1 ->
        DIE_IN; SET(p, RESERVED, 1, me); DIE_IN; cached = cached - 1; own = p
     :: p != PAGES && desc[p].length > 1 ->                       /* split */
        size = desc[p].length;
        DIE_IN;
#ifdef HEAD_FIRST
        SET(p, RESERVED, 1, me); DIE_IN; SET(p + 1, FREE_, size - 1, 0);
#else
        SET(p + 1, FREE_, size - 1, 0); DIE_IN; SET(p, RESERVED, 1, me);  /* the commit */
#endif
        DIE_IN; cached = cached - 1; own = p
     fi
  :: task == 1 && own != PAGES -> give_back(own)
  :: task == 1 && own == PAGES -> skip
  :: task == 2 ->                                                /* the survivors reap */
     bury(); assert(cached == committed && desc[0].length == committed)
  fi;
  d_step { task++; p = 0; sum = 0; size = 0; freed = 0 };
  DIE_IN;
  atomic { word = 0; inside-- };                                 /* leave */
  if
  :: task < 2 -> goto again
  :: task == 2 -> d_step { living--; counted = true }; (living == 0); goto again
  :: task == 3 -> goto end
  fi;
killed:
  skip;
end: skip
}

init {
  atomic {
    SET(0, FREE_, 2, 0);
    run P(1); run P(2); run P(3);
#if N > 3
    run P(4);
#endif
  }
}
