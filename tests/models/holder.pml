/* SPDX-FileCopyrightText: The ipcbuf authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * holder.pml - who holds what while it changes hands: a sender puts a block into its ring, finds
 * the ring full, links a second and sends another block; a receiver takes both; a third process
 * buries whoever died. Up to MAXC of them are killed, each at any step.
 *
 *   here           there
 *   Sender         ThreadHeap::take, SenderEnd::send_entered, make_ring, give_ring (C1)
 *   Receiver       ReceiverEnd::receive_entered: D5, then C2
 *   Reaper         reap, steps 4: reap_blocks; candidates first, then reach, then compare-and-swap
 *   look           reach: from receiver.ring along `next`, what each ring holds; again if it moved
 *   REAPER_WORD    SlotRow::reaper; a reaper that dies is followed by another
 *
 * Blocks 0 and 1 are payloads, 2 and 3 rings; ring 2 is there from the start.
 *
 * Proven: nobody frees what another uses; nothing is freed twice; in the end everything that is
 * not in the chain or held by the living is free.
 *
 * Each of these faults must be noticed:
 *   POP_FIRST      D5: the read word moves before the blocks are claimed
 *   NEXT_FIRST     C1: `next` is stored before the ring is the channel's
 *   NO_CREATOR     C1, C2: who links or unlinks a ring is not noted
 *   FREE_FIRST     C2: the old ring is freed before the receiver moved on
 *   PLAIN_STORE    the reaper frees by a plain store
 */
#ifndef MAXC
#define MAXC 2
#endif
#define NOBODY 0
#define S 1
#define C 2
#define CHANNEL 9

byte holder[4];
byte creator[4];
byte held[4];              /* the block a ring's only record names, + 1 */
byte written[4], read[4];  /* its two words */
byte next[4];              /* 0: none */
byte head = 2;             /* receiver.ring */
byte frees[4];
bool dead[3], over[3];
byte crashes = 0, buried = 0;

#define DIE(x) if :: crashes < MAXC -> atomic { crashes++; dead[x] = true }; goto out :: skip fi
#define CAS_FREE(b, x) \
  skip; d_step { if :: holder[b] == x -> holder[b] = NOBODY; frees[b]++; assert(frees[b] <= 1) \
              :: else -> skip fi }

proctype Sender() {
  /* allocate: the headers say free until now */
  DIE(S); holder[0] = S;
  DIE(S); held[2] = 1;
  DIE(S); written[2] = 1;                      /* publish */
  DIE(S); holder[1] = S;
  DIE(S); holder[3] = S;                       /* make_ring */
  DIE(S);
#ifdef NEXT_FIRST
  next[2] = 3; DIE(S); creator[3] = S; holder[3] = CHANNEL;
#else
#ifndef NO_CREATOR
  creator[3] = S; DIE(S);
#endif
  holder[3] = CHANNEL; DIE(S);
  next[2] = 3;                                 /* C1, the commit */
#endif
  DIE(S); held[3] = 2;
  DIE(S); written[3] = 1;
  DIE(S);
out:
  over[S] = true
}

proctype Receiver() {
  byte b, r, taken = 0;
next_one:
  r = head;
  assert(holder[r] == CHANNEL);                /* open_ring */
  if
  :: read[r] == written[r] && next[r] == 0 ->
     if
     :: dead[S] || over[S] -> if :: read[r] == written[r] && next[r] == 0 -> goto out :: else -> goto next_one fi
     :: read[r] != written[r] || next[r] != 0 -> goto next_one
     fi
  :: read[r] != written[r] ->
     b = held[r] - 1;
     DIE(C);
#ifdef POP_FIRST
     read[r] = 1; DIE(C); holder[b] = C;
#else
     holder[b] = C; DIE(C); read[r] = 1;       /* D5: claim, then advance */
#endif
     DIE(C);
     assert(holder[b] == C);                   /* nobody frees a block in use */
     assert(frees[b] == 0);
     DIE(C);
     CAS_FREE(b, C);
     taken++;
     goto next_one
  :: read[r] == written[r] && next[r] != 0 ->
     if :: read[r] != written[r] -> goto next_one :: else -> skip fi; /* once more, then move on */
     assert(holder[r] == CHANNEL);             /* nobody frees a ring in use */
     DIE(C);
#ifdef FREE_FIRST
     CAS_FREE(r, CHANNEL); DIE(C); head = next[r];
#else
#ifndef NO_CREATOR
     creator[r] = C; DIE(C);
#endif
     head = next[r];                           /* C2, the commit */
     DIE(C);
     CAS_FREE(r, CHANNEL);
#endif
     goto next_one
  fi;
out:
  over[C] = true
}

#define MINE(b, x) (holder[b] == x || (holder[b] == CHANNEL && creator[b] == x))

inline look() {
  do
  :: true ->
     still = over[C]; at = head; reached = 0; whole = true;
     do
     :: at != 0 && whole ->
        if
        :: holder[at] != CHANNEL -> assert(!still); whole = false  /* its receiver moved on */
        :: else ->
           reached = reached | (1 << at);
           if :: written[at] != read[at] ->
                 seen = held[at];
                 if :: read[at] == 0 -> reached = reached | (1 << (seen - 1)) :: else -> skip fi
              :: else -> skip fi;
           w = at; at = next[at];
           if :: holder[w] != CHANNEL -> whole = false :: else -> skip fi
        fi
     :: else -> break
     od;
     if :: whole -> break :: else -> skip fi
  od
}

inline bury(x) {
  mine = 0;
  if :: MINE(0, x) -> mine = mine | 1 :: else -> skip fi;
  if :: MINE(1, x) -> mine = mine | 2 :: else -> skip fi;
  if :: MINE(2, x) -> mine = mine | 4 :: else -> skip fi;
  if :: MINE(3, x) -> mine = mine | 8 :: else -> skip fi;
  look();
  n = 0;
  do
  :: n < 4 ->
     if
     :: (mine & (1 << n)) && !(reached & (1 << n)) ->
#ifdef PLAIN_STORE
        holder[n] = NOBODY; frees[n]++; assert(frees[n] <= 1)
#else
        if :: n < 2 -> CAS_FREE(n, x) :: else -> CAS_FREE(n, CHANNEL); CAS_FREE(n, x) fi
#endif
     :: else -> skip
     fi;
     n++
  :: else -> break
  od;
  skip;
  d_step { mine = 0; reached = 0; at = 0; seen = 0; w = 0; n = 0; whole = false; still = false }
}

proctype Reaper() {
  byte mine, reached, at, seen, w, n;
  bool whole, still;
  do
  :: dead[S] && !(buried & 1) ->
     bury(S);
     if :: crashes < MAXC -> crashes++ :: buried = buried | 1 fi  /* killed before the commit: again */
  :: dead[C] && !(buried & 2) ->
     bury(C);
     if :: crashes < MAXC -> crashes++ :: buried = buried | 2 fi
  :: over[S] && over[C] && (!dead[S] || (buried & 1)) && (!dead[C] || (buried & 2)) -> break
  od;
  /* Who is left: what the chain reaches, and what a living sender has not sent. */
  look();
  n = 0;
  do
  :: n < 4 ->
     assert(holder[n] == NOBODY || (reached & (1 << n)) || (holder[n] == S && !dead[S]));
     assert(!(reached & (1 << n)) || holder[n] != NOBODY);
     n++
  :: else -> break
  od
}

init { atomic { holder[2] = CHANNEL; run Sender(); run Receiver(); run Reaper() } }
