package main

import (
	"strings"
	"testing"
	"time"
)

// example is what was seen of a server that did all things right: who, when, what ("<" is heard, ">" typed), and the text.
const example = `
chain {"Index":0,"Timestamp":"2026-01-02T03:04:00.000000000Z","BPM":0,"Hash":"cede766e16ffefade0f02079b7b5808b6f683671d58988814760fc8192dcb823","PrevHash":"","Validator":""}
chain {"Index":1,"Timestamp":"2026-01-02T03:04:01.000000000Z","BPM":72,"Hash":"52fb9cc1c763b22ebe56ace615112806fcdf02f005238962de1fabf17d72eb43","PrevHash":"cede766e16ffefade0f02079b7b5808b6f683671d58988814760fc8192dcb823","Validator":"ALICE"}
chain {"Index":2,"Timestamp":"2026-01-02T03:04:02.000000000Z","BPM":68,"Hash":"9930f838043e3779ef15cb011dbc99bf3937d0bbe0f1be4230d05ca64cc560f3","PrevHash":"52fb9cc1c763b22ebe56ace615112806fcdf02f005238962de1fabf17d72eb43","Validator":"BOB"}
draws {"Index":1,"Block":"52fb9cc1c763b22ebe56ace615112806fcdf02f005238962de1fabf17d72eb43","Lines":["KBZ3ZK5EUBYQZ2WUTMH3RYMSGE","ALICE 100 72","BOB 25 68"],"Ticket":21,"Total":125,"NextSeal":"SEAL2"}
draws {"Index":2,"Block":"9930f838043e3779ef15cb011dbc99bf3937d0bbe0f1be4230d05ca64cc560f3","Lines":["AAAAAAAAAAAAAAAAAAAAAAAAAA","ALICE 100 slashed","BOB 25 68"],"Ticket":3,"Total":25,"NextSeal":"SEAL3"}
console ⏎draw 1 seal: SEAL1⏎listening on :9000⏎block 1: BPM 72, ticket 21 of 125, proposals 2, stake 100 (80.0%), forged by⏎  ALICE⏎draw 2 seal: SEAL2
console block 2: BPM 68, ticket 59 of 125 was slashed, again: ticket 3 of 25, proposals 2, stake 25 (100.0%), forged by⏎  BOB⏎draw 3 seal: SEAL3
alice 1.00 < Enter token balance:
alice 1.01 > 0
alice 1.02 < ⏎"0" is not a stake: the least is 1⏎Enter token balance:
alice 1.03 > 100
alice 1.04 < ⏎you are validator ALICE with 100 tokens staked⏎draw 1 seal: SEAL1⏎⏎Enter a new BPM:
alice 1.05 > 72
alice 1.06 < ⏎block 1 proposed with BPM 72: tickets 1 to 100; the winner is drawn in 200ms⏎⏎Enter a new BPM:
alice 1.26 < ⏎winning validator: ALICE⏎block 1, BPM 72: ticket 21 of 125, secret KBZ3ZK5EUBYQZ2WUTMH3RYMSGE⏎you forged block 1⏎draw 2 seal: SEAL2⏎⏎Enter a new BPM:
alice 4.02 > 73
alice 4.03 < ⏎block 2 proposed with BPM 73: tickets 1 to 100; the winner is drawn in 200ms⏎⏎Enter a new BPM:
alice 4.05 > seventy
alice 4.06 < ⏎slashed: "seventy" is not a pulse (a whole number, 0 or more); 100 tokens forfeited⏎
alice 4.07 end EOF
bob 1.01 < Enter token balance:
bob 1.07 > 25
bob 1.08 < ⏎you are validator BOB with 25 tokens staked⏎draw 1 seal: SEAL1⏎⏎Enter a new BPM:
bob 1.09 > 68
bob 1.10 < ⏎block 1 proposed with BPM 68: tickets 101 to 125; the winner is drawn in 160ms⏎⏎Enter a new BPM:
bob 1.11 > 69
bob 1.12 >
bob 1.12 < ⏎block 1 is already proposed with BPM 68; the next round opens in 150ms⏎⏎Enter a new BPM:
bob 1.13 < ⏎block 1: proposals 2, tokens 125, yours 25 (20.0%); the winner is drawn in 140ms⏎⏎Enter a new BPM:
bob 1.26 < ⏎winning validator: ALICE⏎block 1, BPM 72: ticket 21 of 125, secret KBZ3ZK5EUBYQZ2WUTMH3RYMSGE⏎draw 2 seal: SEAL2⏎⏎Enter a new BPM:
bob 4.04 > 68
bob 4.05 < ⏎block 2 proposed with BPM 68: tickets 101 to 125; the winner is drawn in 180ms⏎⏎Enter a new BPM:
bob 4.23 < ⏎winning validator: BOB⏎block 2, BPM 68: ticket 59 of 125 was slashed, again: ticket 3 of 25, secret AAAAAAAAAAAAAAAAAAAAAAAAAA⏎you forged block 2⏎draw 3 seal: SEAL3⏎⏎Enter a new BPM:
bob 4.24 > draw
bob 4.25 < ⏎block 2: ticket 59 of 125 was slashed, again: ticket 3 of 25; the lines of its draw:⏎AAAAAAAAAAAAAAAAAAAAAAAAAA⏎ALICE 100 slashed⏎BOB 25 68⏎⏎Enter a new BPM:
bob 4.26 > QUIT
bob 4.27 < ⏎goodbye⏎
bob 4.28 end EOF
dave 0.01 < Enter token balance:
dave 0.02 > Draw
dave 0.03 < ⏎no block was drawn since the server started⏎Enter token balance:
dave 1.01 < ⏎[BLOCK0]⏎Enter token balance:
dave 1.26 < ⏎winning validator: ALICE⏎block 1, BPM 72: ticket 21 of 125, secret KBZ3ZK5EUBYQZ2WUTMH3RYMSGE⏎draw 2 seal: SEAL2⏎Enter token balance:
dave 4.23 < ⏎winning validator: BOB⏎block 2, BPM 68: ticket 59 of 125 was slashed, again: ticket 3 of 25, secret AAAAAAAAAAAAAAAAAAAAAAAAAA⏎draw 3 seal: SEAL3⏎Enter token balance:
dave 4.50 < ⏎[BLOCK0,BLOCK1,BLOCK2]⏎Enter token balance:
dave 8.01 < ⏎the server is shutting down⏎
dave 8.02 end EOF
`

// wrongs are changes to the example, one wrong thing each, and what the judge must find.
var wrongs = []struct{ what, old, new, found string }{
	{"a winner who did not win", "dave 1.26 < ⏎winning validator: ALICE", "dave 1.26 < ⏎winning validator: BOB", "dave: server 0: @276"},
	{"a secret that was not sealed", "staked⏎draw 1 seal: SEAL1⏎⏎Enter a new BPM:\nalice 1.05", "staked⏎draw 1 seal: SEAL3⏎⏎Enter a new BPM:\nalice 1.05", "alice"},
	{"the forger is not told", "⏎you forged block 2", "", "bob"},
	{"no prompt", "200ms⏎⏎Enter a new BPM:\nalice 1.26", "200ms⏎\nalice 1.26", "the wrong prompt"},
	{"an answer that nobody asked for", "\nbob 4.26", "\nbob 4.255 < ⏎block 2 is already proposed with BPM 68; the next round opens in 1ms⏎⏎Enter a new BPM:\nbob 4.26", "bob"},
	{"other tickets", "tickets 101 to 125; the winner is drawn in 180ms", "tickets 100 to 124; the winner is drawn in 180ms", "it proposed"},
	{"help counts as a try", "alice 1.01 > 0\nalice 1.02 < ⏎\"0\"", "alice 1.01 > help\nalice 1.02 < ⏎\"help\"", "alice"},
	{"BPM 0 costs the stake", "alice 4.05 > seventy\nalice 4.06 < ⏎slashed: \"seventy\"", "alice 4.05 > 0\nalice 4.06 < ⏎slashed: \"0\"", "alice"},
	{"another standing", "tokens 125, yours", "tokens 126, yours", "not the tokens of"},
	{"a broadcast that is one block short", "[BLOCK0,BLOCK1,BLOCK2]", "[BLOCK0,BLOCK1]", "dave"},
	{"a broadcast too early", "dave 1.01 <", "dave 0.60 <", "too early"},
	{"no broadcast", "dave 4.50 < ⏎[BLOCK0,BLOCK1,BLOCK2]⏎Enter token balance:\n", "", "it was not sent the chain"},
	{"a round that ends too early", "bob 4.23", "bob 4.20", "the round ended too early"},
	{"lost last words", "bob 4.28 end EOF", "bob 4.28 end connection reset by peer", "badly: connection reset"},
	{"the end without a word", "bob 4.27 < ⏎goodbye⏎\n", "", "ended without a reason"},
	{"a shutdown that nobody asked for", "dave 8.01", "dave 7.99", "nobody stopped it"},
	{"full with few", "dave 0.01 < Enter token", "erin 0.01 < the server is full, try again later⏎\nerin 0.02 end EOF\ndave 0.01 < Enter token", "is full with 1"},
	{"a slashed validator who may win", `"ALICE 100 slashed"`, `"ALICE 100 72"`, "drawn again it is"},
	{"a block that does not follow", `"BPM":68`, `"BPM":69`, "no block after block 1"},
	{"no record of a draw", `draws {"Index":2`, `noted {"Index":2`, "no record of its draw"},
	{"a secret that is used again", `"NextSeal":"SEAL2"`, `"NextSeal":"SEAL1"`, "or the same again"},
	{"an address that is not new", "bob 1.08 < ⏎you are validator BOB", "bob 1.08 < ⏎you are validator ALICE", "the address of alice once more"},
	{"a proposal that nobody made", "alice 1.05 > 72", "alice 1.05 > 71", "block 1: nobody proposed"},
	{"a second draw", `draws {"Index":2`, `draws {"Index":1`, "a second draw"},
	{"announced before it was in the chain file", "bob 1.26 <", "bob 1.26 <c", "was not in the chain file"},
	{"announced before its draw was in the draws file", "bob 1.26 <", "bob 1.26 <d", "was not in the draws file"},
	{"a proposal that is not in the draw", "dave 0.01 <", "erin 1.0 < Enter token balance:\nerin 1.0 > 1\nerin 1.0 < ⏎you are validator SEAL3 with 1 tokens staked⏎draw 1 seal: SEAL1⏎⏎Enter a new BPM:\n" +
		"erin 1.1 > 1\nerin 1.1 < ⏎block 1 proposed with BPM 1: tickets 126 to 126; the winner is drawn in 90ms⏎⏎Enter a new BPM:\nerin 1.1 hung-up\ndave 0.01 <", "erin: server 0: block 1 was drawn with {"},
	{"a console that does not show a draw", "console block 2", "noted block 2", "the console does not show"},
	{"a race", "dave 8.02 end EOF", "dave 8.02 end EOF\nstderr WARNING: DATA RACE", "on stderr"},
}

// serverOf makes a server of which was seen what text says.
func serverOf(text string) *server {
	l := &server{soak: &soak{count: map[string]int{}}, first: 1, asked: 8 * time.Second}
	blocks := strings.Split(strings.ReplaceAll(example, "\nchain ", "\n"), "\n")
	text = strings.NewReplacer("BLOCK0", blocks[1], "BLOCK1", blocks[2], "BLOCK2", blocks[3]).Replace(text)
	values := strings.NewReplacer("⏎", "\n", "ALICE", "a199cdea8894ecbe12c65b56fa395a64976f092c825e44bb5ba3a220c73793fa",
		"BOB", "c700655083fd1a5a42a460566e477569e4a9273b9c9aa44f081a4b50fb600e71",
		"SEAL1", "607fbc17a7d3a1c85183c0488f5b2fcb7e10f75494c8813b6f2b43ccbed32427",
		"SEAL2", "877874455257d3c60b68f733ff529e1295cd9b3ef8f09bf48a3ebc0b002ea8ef",
		"SEAL3", "0e60f10bc3e970ffd5016f1947690bfcc32e02ec25a08aa41b66f8ef93ed376d")
	said := map[string]*string{"chain": &l.chain, "draws": &l.draws, "console": &l.console, "stderr": &l.errs, "noted": &l.addr}
	terminals := map[string]*terminal{}
	for line := range strings.Lines(strings.TrimSpace(text)) {
		who, rest, _ := strings.Cut(values.Replace(strings.TrimSuffix(line, "\n")), " ")
		if said[who] != nil {
			*said[who] += rest + "\n"
			continue
		}
		when, rest, _ := strings.Cut(rest, " ")
		what, text, _ := strings.Cut(rest, " ")
		at, _ := time.ParseDuration(when + "s")
		t := terminals[who]
		if t == nil {
			t = &terminal{name: who, dialed: at}
			terminals[who], l.terminals = t, append(l.terminals, t)
		}
		switch t.ended = at; what {
		case ">":
			t.typed = append(t.typed, moment{at: at, text: text})
		case "hung-up":
			t.hungUp = at
		case "end":
			t.end = text
		default: // "<"; "<c" and "<d" before the chain, or the draws, were kept
			t.heard += text
			kept := map[bool]int{true: 1, false: 99999}
			t.came = append(t.came, moment{at: at, end: len(t.heard), kept: kept[what == "<c"], drew: kept[what == "<d"]})
		}
	}
	return l
}

func TestJudge(t *testing.T) {
	l := serverOf(example)
	if l.judge(); len(l.faults) > 0 {
		t.Fatalf("all is right, but the judge finds %q", l.faults)
	}
	for _, wrong := range wrongs {
		text := strings.Replace(example, wrong.old, wrong.new, 1)
		l := serverOf(text)
		if l.judge(); text == example || !strings.Contains(strings.Join(l.faults, "\n"), wrong.found) {
			t.Errorf("%s: the judge should find %q, it finds %q", wrong.what, wrong.found, l.faults)
		}
	}
}
