/* SPDX-FileCopyrightText: The ipcbuf authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * lane.pml - one lane of a channel: a sender that publishes K messages, two receivers of a shared
 * end that take one message per call, the doorbell between them, and the sender's end. Up to MAXC
 * of them are killed, each at any step.
 *
 *   here              there
 *   Sender            SenderEnd::try_send: publish, ring_futex (endpoint.cpp, doorbell.hpp)
 *   Receiver          ReceiverEnd::receive_slice: peer_gone, try_receive, sleep; finish_wait
 *   announce, look    Doorbell::announce, the second look of Endpoint::sleep (D1)
 *   WAKE              Doorbell::wake: clears the flag, wakes one sleeper
 *   leaving           Endpoint::finish_wait (D2)
 *   REAP              peer_gone(prove): the sender is dead, its end is, all sleepers wake
 *   lock              the receivers' owner word, taken over from a dead one
 *
 * Orders of memory are not modelled here but under Relacy (tests/core/relacy/doorbell.cpp).
 *
 * Proven: what was published is received once and in order; a receiver only sees the end when
 * nothing is left; nobody sleeps over a message or an end: between the living without any
 * slice (-DUNSLICED -DMAXC=0, with and without -DSTAYS_OPEN: the sender does not close), and with
 * slices whoever dies.
 *
 * Each of these faults must be noticed:
 *   LOOK_FIRST  (UNSLICED, MAXC=0) the sleeper looks before it sets its flag
 *   NO_D2       (UNSLICED, MAXC=0, STAYS_OPEN) who was woken wakes nobody else
 *   RING_FIRST  the ring is looked at before the other side (D7)
 *   UNSLICED    with kills: a sleeper waits for a wake-up alone
 *   POP_FIRST   the read word moves before the message was copied (no lock's recovery helps)
 */
#ifndef K
#define K 2
#endif
#ifndef MAXC
#define MAXC 2
#endif
#define R 2 /* receivers */

byte written = 0, read = 0;   /* the two words of the ring */
bool waiting = false;         /* kBellWaiting */
byte sequence = 0;            /* of the bell's word; FUTEX_WAIT compares both */
bool asleep[R];
bool ended = false;           /* the sender's EndState: closed or dead */
bool sender_dead = false;
byte lock = 0;                /* receiver + 1 */
bool dead[R];
byte crashes = 0, got = 0;

#define DIE if :: crashes < MAXC -> crashes++; goto killed :: skip fi
#define WAKE \
  atomic { \
    if :: waiting -> waiting = false; sequence = (sequence + 1) % 16; \
          if :: asleep[0] -> asleep[0] = false :: asleep[1] -> asleep[1] = false :: else -> skip fi \
       :: else -> skip fi }
#define WAKE_ALL d_step { sequence = (sequence + 1) % 16; asleep[0] = false; asleep[1] = false }

active proctype Sender() {
  bool w;
  byte i = 0;
  do
  :: i < K ->
     DIE; written++;                             /* publish */
     DIE; w = waiting;                           /* look, behind the publish */
     if :: w -> DIE; WAKE :: else -> skip fi;
     i++; w = false
  :: else -> break
  od;
#ifdef STAYS_OPEN
  goto fin;
#endif
  DIE; ended = true; WAKE_ALL; goto fin;         /* close */
killed:
  sender_dead = true;
fin: skip
}

inline announce() { d_step { waiting = true; seen = sequence } }

/* When nobody can go on: who sleeps, sleeps over an empty ring that has not ended. */
active proctype Watch() {
end_watch:
  timeout;
  assert(!((asleep[0] && !dead[0]) || (asleep[1] && !dead[1])) ||
         (written == read && !ended && !sender_dead))
}

active [R] proctype Receiver() {
  byte me = _pid - 2, front = 0;
  bool gone, slept = false, none;
  byte seen;
call:
  DIE;
#ifdef RING_FIRST
  none = (written == read);
  gone = ended;
#else
  gone = ended;                                  /* D7: first the other side, */
#endif
  /* try_receive: enter. The owner word itself is in heap.pml. */
  if
  :: atomic { lock == 0 -> lock = me + 1 }
  :: atomic { lock != 0 && lock != me + 1 && dead[lock - 1] -> lock = me + 1 }
  fi;
#ifndef RING_FIRST
  none = (written == read);                     /* then the ring */
#endif
  if
  :: written != read && !none ->
     front = read;
     DIE;
#ifdef POP_FIRST
     read++; DIE; assert(got == front); got++;
#else
     d_step { assert(got == front); got++; read++ };  /* the commit: read word */
#endif
     DIE; lock = 0;
     goto leave_wait
  :: else -> skip
  fi;
  lock = 0;
  if :: gone -> goto leave_wait :: else -> skip fi;
  /* sleep */
#ifdef LOOK_FIRST
  if :: written != read || ended -> goto prove :: else -> skip fi;
  announce();
#else
  announce();                                    /* D1 */
  if :: written != read || ended -> goto prove :: else -> skip fi;
#endif
  slept = true;
  atomic { if :: sequence == seen && waiting -> asleep[me] = true :: else -> skip fi };
end_asleep:                                      /* over an empty ring one may sleep for ever */
  if
  :: !asleep[me] -> skip
#ifndef UNSLICED
  :: sender_dead || ended || written != read -> asleep[me] = false   /* the slice ends */
#endif
  fi;
prove:
  seen = 0;
  DIE;
  if :: sender_dead && !ended -> ended = true; WAKE_ALL  /* REAP: others may do it too */
     :: else -> skip fi;
  goto call;
leave_wait:
  skip;
#ifndef NO_D2
  if :: slept -> DIE; waiting = true;            /* D2 */
        DIE; if :: written != read -> WAKE :: else -> skip fi
     :: else -> skip fi;
#endif
  d_step { slept = false; seen = 0; front = 0 };
  if :: gone && none -> assert(read == written); goto fin  /* the end: nothing is left */
     :: else -> skip fi;
  if :: true -> goto fin :: true -> goto call fi;  /* a user may go and do something else */
killed:
  dead[me] = true;
fin: skip
}
