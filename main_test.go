package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"math/big"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"proofofstake/internal/draw"
	"proofofstake/internal/lineconn"
)

// The terminal contract: what people type and what they are shown, in virtual time, in the order of
// PROTOCOL.md. What only the built binary and the real nc can show is in internal/e2e.

func TestMain(m *testing.M) {
	time.Local = time.FixedZone("elsewhere", 5*60*60) // what says that it is UTC must be
	m.Run()
}

// ---- Helpers ----

// hall is a network under test, with its console.
type hall struct {
	*network
	t               testing.TB
	console, stderr screen
	stop            context.CancelFunc
	known           map[string]string // what <name> in a dialogue stands for
}

// must is v, which cannot fail in a test that goes well.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// has fails the test if text does not have all of these parts.
func has(t testing.TB, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q should have %q", text, part)
		}
	}
}

// screen is what was shown. It may be looked at while it is written to.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

// take is what was shown since it was last asked for.
func (s *screen) take() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := s.text.String()
	s.text = bytes.Buffer{}
	return text
}

// next is take in virtual time, when all that happens now has happened.
func (s *screen) next() string { synctest.Wait(); return s.take() }

// defaults are the default settings, but for the files, which are in memory, and broadcasts, of which there are none.
func defaults() settings {
	return settings{
		roundLength: 30 * time.Second, broadcastEvery: 10000 * time.Hour, broadcastBlocks: 10,
		maxStake: math.MaxInt64, maxClients: 10000, maxPerAddress: 1000,
	}
}

// onDisk is defaults with files in a folder of the test.
func onDisk(t testing.TB) settings {
	s, folder := defaults(), t.TempDir()
	s.chainFile, s.drawsFile = filepath.Join(folder, "chain.jsonl"), filepath.Join(folder, "draws.jsonl")
	return s
}

// open starts a network: as the server does on a listener, or without one, see connect.
func open(t testing.TB, s settings, ln lineconn.Listener) *hall {
	t.Helper()
	h := &hall{t: t, known: map[string]string{}}
	ctx, stop := context.WithCancel(context.Background())
	h.network, h.stop = must(newNetwork(ctx, s, &h.console, log.New(&h.stderr, "", 0))), stop
	if ln == nil {
		go h.run(ctx)
	} else {
		go h.serve(ctx, ln)
	}
	return h
}

// inVirtualTime plays on a fresh network in virtual time. It fails if a goroutine is left at the end.
func inVirtualTime(t *testing.T, s settings, play func(h *hall)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := open(t, s, nil)
		defer func() {
			h.stop()
			<-h.stopped
			time.Sleep(time.Minute) // all terminals were told so, or cut off
			synctest.Wait()
			h.close()
		}()
		play(h)
	})
}

// match fails the test if text is not want, in which <name> stands for a value, the same one everywhere.
func (h *hall) match(text, want string) {
	h.t.Helper()
	var names []string
	pattern := regexp.MustCompile(`<[a-z]+\d*>`).ReplaceAllStringFunc(regexp.QuoteMeta(want), func(name string) string {
		if value, ok := h.known[name]; ok {
			return regexp.QuoteMeta(value)
		}
		names = append(names, name)
		return `([\w.:-]+)`
	})
	m := regexp.MustCompile("^" + pattern + "$").FindStringSubmatch(text)
	if m == nil {
		h.t.Errorf("shown is\n%s\n--- want\n%s\n--- with %v", text, want, h.known)
		return
	}
	for i, name := range names {
		if value, ok := h.known[name]; ok && value != m[i+1] {
			h.t.Errorf("%s is %s and %s in\n%s", name, value, m[i+1], text)
		}
		h.known[name] = m[i+1]
	}
}

// shows checks what the console has shown since the last time, warns what the log says. The console has 80 columns, but for a
// genesis block and huge numbers.
func (h *hall) shows(want string) {
	h.t.Helper()
	text := h.console.next()
	if wide := regexp.MustCompile(`(?m)^.{81,}$`).FindString(text); wide != "" && !regexp.MustCompile(`\(len=64\)|\d{19}`).MatchString(wide) {
		h.t.Errorf("on the console, this is too wide: %s", wide)
	}
	h.match(text, want)
}
func (h *hall) warns(want string) { h.t.Helper(); h.match(h.stderr.next(), want) }

// duplex is one end of a connection of two net.Pipes, of which each can be ended alone, as in TCP.
type duplex struct {
	net.Conn // reads
	out      net.Conn
}

func (d duplex) Write(p []byte) (int, error)        { return d.out.Write(p) }
func (d duplex) SetWriteDeadline(t time.Time) error { return d.out.SetWriteDeadline(t) }
func (d duplex) CloseWrite() error                  { return d.out.Close() }
func (d duplex) Close() error                       { return errors.Join(d.Conn.Close(), d.out.Close()) }

// wire is both ends of a connection.
func wire() (client, server duplex) {
	toServer, atServer := net.Pipe()
	atClient, toClient := net.Pipe()
	return duplex{atClient, toServer}, duplex{atServer, toClient}
}

// person sits at a terminal in virtual time.
type person struct {
	screen
	h              *hall
	client, server duplex
	input          chan string   // typed, not yet sent
	served         chan struct{} // closed when the handler has returned
}

// connect gives h one more terminal, from a network address that is not counted.
func (h *hall) connect() *person { return h.connectFrom(netip.Prefix{}) }

func (h *hall) connectFrom(from netip.Prefix) *person {
	synctest.Wait() // until all has happened that happens before
	client, server := wire()
	p := &person{h: h, client: client, server: server, input: make(chan string, 100), served: make(chan struct{})}
	ended := make(chan struct{})
	go func() { h.handleConn(server, from); close(p.served) }()
	go func() { io.Copy(p, client); close(ended) }()
	go func() {
		for {
			select {
			case text := <-p.input:
				io.WriteString(client, text)
			case <-ended:
				return
			}
		}
	}()
	return p
}

// types sends text and returns what the terminal shows for it before any time passes.
func (p *person) types(text string) string {
	p.input <- text
	return p.next()
}

// plays checks a dialogue, which is the screen as the person sees it: «72» is a line that is typed, «100⏎72» two in one
// packet, «30s later» time that passes, «^D» the end of the input, «closed» that of the connection.
func (p *person) plays(dialogue string) {
	p.h.t.Helper()
	for rest := dialogue; ; {
		shown, typed, more := strings.Cut(rest, "«")
		p.h.match(p.next(), shown)
		if !more {
			return
		}
		typed, rest, _ = strings.Cut(typed, "»")
		if later, ok := strings.CutSuffix(typed, " later"); ok {
			d, _ := time.ParseDuration(later)
			time.Sleep(d)
		} else if typed == "^D" {
			p.client.CloseWrite()
		} else if typed == "closed" {
			p.isGone()
		} else {
			p.input <- strings.ReplaceAll(typed, "⏎", "\n") + "\n"
			rest = strings.TrimPrefix(rest, "\n") // which the terminal itself shows
		}
	}
}

// isGone fails the test if the connection is not closed in the second that last words have to arrive.
func (p *person) isGone() {
	p.h.t.Helper()
	time.Sleep(time.Second)
	synctest.Wait()
	select {
	case <-p.served:
	default:
		p.h.t.Error("the connection is still open")
	}
}

// leaves closes the terminal, as one whose window is closed; vanishes is as when the connection is reset: the server
// can neither read nor write.
func (p *person) leaves()   { p.client.Close() }
func (p *person) vanishes() { p.server.Close(); synctest.Wait() }

// seat is a terminal whose validator has staked so many tokens; <name> is its address from then on.
func (h *hall) seat(name string, tokens int64) *person {
	h.t.Helper()
	p := h.connect()
	text := p.types(fmt.Sprintln(tokens))
	m := regexp.MustCompile(`^Enter token balance:\nyou are validator ([0-9a-f]{64}) with \d+ tokens staked\n` +
		`draw \d+ seal: [0-9a-f]{64}\n\nEnter a new BPM:$`).FindStringSubmatch(text)
	if m == nil {
		h.t.Fatalf("staking %d: %q", tokens, text)
	}
	h.known["<"+name+">"] = m[1]
	return p
}

// won is what terminals hear of a block: of which so many tickets were given out, and what its winner's own hears besides.
func won(block int, winner string, bpm int, tickets int64, besides string) string {
	return fmt.Sprintf("\nwinning validator: <%s>\nblock %[2]d, BPM %d: ticket <ticket%[2]d> of %[4]d, secret <secret%[2]d>\n"+
		"%[5]sdraw %[6]d seal: <seal%[6]d>\n",
		winner, block, bpm, tickets, besides, block+1)
}

// hash is the SHA-256 of text in hex.
func hash(text string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(text))) }

// redraw draws from lines as the contract says, and shares no code with the program. The winner is its line in words.
func redraw(lines []string) (words string, winner []string) {
	again, text := "", strings.Join(lines, "\n")
	for _, slashedToo := range []bool{true, false} {
		text = hash(text + "\n")
		total, ends := new(big.Int), []*big.Int{}
		for _, line := range lines[1:] {
			entry := strings.Split(line, " ")
			if stake, _ := new(big.Int).SetString(entry[1], 10); slashedToo || entry[2] != "slashed" {
				total.Add(total, stake)
			}
			ends = append(ends, new(big.Int).Set(total))
		}
		ticket, _ := new(big.Int).SetString(text, 16)
		ticket.Add(ticket.Mod(ticket, total), big.NewInt(1))
		i := slices.IndexFunc(ends, func(end *big.Int) bool { return ticket.Cmp(end) <= 0 })
		winner = strings.Split(lines[1+i], " ")
		if words = fmt.Sprintf("%sticket %d of %d", again, ticket, total); winner[2] != "slashed" {
			break
		}
		again = words + " was slashed, again: "
	}
	return words, winner
}

// ---- A validator's terminal ----

// An evening of a winner, another validator and a spectator, as each of them and the console sees it.
func TestEvening(t *testing.T) {
	inVirtualTime(t, defaults(), func(h *hall) {
		h.shows(`(main.Block) {
 Index: (int) 0,
 Timestamp: (string) (len=30) "2000-01-01T00:00:00.000000000Z",
 BPM: (int) 0,
 Hash: (string) (len=64) "9fa00adf97e0d81be3e68f14ea88337abd6eaddb6c7016a873733aa5e48ea371",
 PrevHash: (string) "",
 Validator: (string) ""
}
`)
		alice, bob, eve := h.connect(), h.connect(), h.connect()
		eve.plays("Enter token balance:")
		alice.plays(`Enter token balance:«100»

you are validator <alice> with 100 tokens staked
draw 1 seal: <seal1>

Enter a new BPM:«72»

block 1 proposed with BPM 72: tickets 1 to 100; the winner is drawn in 30s

Enter a new BPM:«17.6s later»«73»

block 1 is already proposed with BPM 72; the next round opens in 12s

Enter a new BPM:«11.6s later»«74»

block 1 is already proposed with BPM 72; the next round opens in 800ms

Enter a new BPM:`)
		h.shows("validators: 1 with 100 tokens staked\n  <alice> 100\n")
		bob.plays(`Enter token balance:«25»

you are validator <bob> with 25 tokens staked
draw 1 seal: <seal1>

Enter a new BPM:«799ms later»«1ms later»
winning validator: <alice>
block 1, BPM 72: ticket <ticket1> of 100, secret <secret1>
draw 2 seal: <seal2>

Enter a new BPM:«68»

block 2 proposed with BPM 68: tickets 1 to 25; the winner is drawn in 30s

Enter a new BPM:`)
		alice.plays(`
winning validator: <alice>
block 1, BPM 72: ticket <ticket1> of 100, secret <secret1>
you forged block 1
draw 2 seal: <seal2>

Enter a new BPM:`)
		eve.plays(won(1, "alice", 72, 100, "") + `Enter token balance:«draw»

block 1: ticket <ticket1> of 100; the lines of its draw:
<secret1>
<alice> 100 72
Enter token balance:`)
		h.shows("block 1: BPM 72, ticket <ticket1> of 100, proposals 1, stake 100 (100.0%), forged by\n  <alice>\ndraw 2 seal: <seal2>\n")
		time.Sleep(30 * time.Second)
		h.shows("validators: 2 with 125 tokens staked\n" + list("  %s\n", []string{h.known["<alice>"] + " 100", h.known["<bob>"] + " 25"}) +
			"block 2: BPM 68, ticket <ticket2> of 25, proposals 1, stake 25 (100.0%), forged by\n  <bob>\ndraw 3 seal: <seal3>\n")
	})
}

// What arrives at once, as a paste or through a pipe, is answered line by line. The words cost nothing, at both prompts.
func TestPaste(t *testing.T) {
	inVirtualTime(t, defaults(), func(h *hall) {
		h.connect().plays(`Enter token balance:«⏎help⏎x⏎draw⏎100⏎?⏎72⏎73⏎draw⏎74⏎⏎quit»
Enter token balance:
Type how many tokens you stake, a whole number from 1 to 9223372036854775807:
the more, the likelier you forge a block. quit: leave.
Enter token balance:
"x" is not a stake: it must be a whole number, such as 100
Enter token balance:
no block was drawn since the server started
Enter token balance:
you are validator <alice> with 100 tokens staked
draw 1 seal: <seal1>

Enter a new BPM:
Type your pulse, a whole number: it proposes a block, one a round.
Enter: how the round stands. draw: how the last block was drawn. quit: leave.
Anything else costs your stake.

Enter a new BPM:
block 1 proposed with BPM 72: tickets 1 to 100; the winner is drawn in 30s

Enter a new BPM:
block 1 is already proposed with BPM 72; the next round opens in 30s

Enter a new BPM:
no block was drawn since the server started

Enter a new BPM:
block 1 is already proposed with BPM 72; the next round opens in 30s

Enter a new BPM:
block 1: proposals 1, tokens 100, yours 100 (100.0%); the winner is drawn in 30s

Enter a new BPM:
goodbye
«closed»`)
		h.connect().plays(`Enter token balance:«9⏎70⏎no⏎75»

you are validator <mallory> with 9 tokens staked
draw 1 seal: <seal1>

Enter a new BPM:
block 1 proposed with BPM 70: tickets 101 to 109; the winner is drawn in 29s

Enter a new BPM:
slashed: "no" is not a pulse (a whole number, 0 or more); 9 tokens forfeited
«closed»`)
		// The proposal of who has left stands, that of who was slashed does not.
		h.connect().plays(`Enter token balance:«50⏎⏎70⏎»

you are validator <bob> with 50 tokens staked
draw 1 seal: <seal1>

Enter a new BPM:
block 1: proposals 1, tokens 100; the winner is drawn in 28s

Enter a new BPM:
block 1 proposed with BPM 70: tickets 110 to 159; the winner is drawn in 28s

Enter a new BPM:
block 1: proposals 2, tokens 150, yours 50 (33.3%); the winner is drawn in 28s

Enter a new BPM:`)
		h.connect().plays(`Enter token balance:«0⏎draw⏎?⏎⏎-5⏎no⏎100»

"0" is not a stake: the least is 1
Enter token balance:
no block was drawn since the server started
Enter token balance:
Type how many tokens you stake, a whole number from 1 to 9223372036854775807:
the more, the likelier you forge a block. quit: leave.
Enter token balance:Enter token balance:
"-5" is not a stake: the least is 1
Enter token balance:
"no" is not a stake: it must be a whole number, such as 100
Enter token balance:
too many tries, goodbye
«closed»`)
	})
}

// The words count in any case of letters, with spaces around them, as telnet sends them.
func TestWords(t *testing.T) {
	inVirtualTime(t, defaults(), func(h *hall) {
		for _, stake := range []string{"", "5\n"} {
			for _, word := range []string{"help", "?", "draw", "quit", ""} {
				var want string
				for _, as := range []string{word, strings.ToUpper(word), "\t " + word + "  ", word + "\r", "\xff\xfd\x06" + word} {
					p := h.connect()
					p.types(stake)
					got := p.types(as + "\n")
					if want = cmp.Or(want, got); got != want || strings.Contains(got, "not a") {
						t.Errorf("%q is answered with %q, %q with %q", word, want, as, got)
					}
					if word == "quit" {
						p.isGone()
					}
					p.leaves()
				}
			}
		}
	})
}

func TestStakes(t *testing.T) {
	const whole, least = "it must be a whole number, such as 100", "the least is 1"
	for _, most := range []string{"1000", "9223372036854775807"} {
		s := defaults()
		fmt.Sscan(most, &s.maxStake)
		inVirtualTime(t, s, func(h *hall) {
			for typed, why := range map[string]string{
				"0": least, "-1": least, "-99999999999999999999": least, "9223372036854775808": "the most is " + most, most + "0": "the most is " + most,
				"abc": whole, "1.5": whole, "1e3": whole, "1 000": whole, "0x10": whole, "١": whole, "quit now": whole, "GET / HTTP/1.1": whole,
				"\x00": whole, "\x1b[2J": whole, "a\tb": whole, strings.Repeat("ä", 50): whole, strings.Repeat("x", 1025): "the line is too long",
			} {
				p, shown := h.connect(), []rune(typed)
				h.match(p.types(typed+"\n"), fmt.Sprintf("Enter token balance:\n%q is not a stake: %s\nEnter token balance:", string(shown[:min(len(shown), 40)]), why))
				p.leaves()
			}
			for typed, tokens := range map[string]string{
				"1": "1", most: most, "  12\t": "12", "7\r": "7", "007": "7", strings.Repeat("0", 1023) + "6\r": "6", "\xff\xfd\x068\xff\xfb\n9": "89",
			} {
				p := h.connect()
				has(t, p.types(typed+"\n"), " with "+tokens+" tokens staked\n")
				p.leaves()
			}
			has(t, h.connect().types("help\n"), "from 1 to "+most+":\n")
		})
	}
}

// Every whole number from 0 on is a pulse; whatever else is typed costs the stake, the place on the list and the proposal.
func TestPulses(t *testing.T) {
	for typed, bpm := range map[string]int{"0": 0, "100000001": 100000001, "9223372036854775807": math.MaxInt, " 007\t\r": 7, "\xff\xf17\xff\xfb\x012": 72} {
		inVirtualTime(t, defaults(), func(h *hall) {
			alice := h.seat("alice", 5)
			h.match(alice.types(typed+"\n"), fmt.Sprintf("\nblock 1 proposed with BPM %d: tickets 1 to 5; the winner is drawn in 30s\n\nEnter a new BPM:", bpm))
			alice.plays("«30s later»" + won(1, "alice", bpm, 5, "you forged block 1\n") + "\nEnter a new BPM:")
		})
	}
	for _, typed := range []string{
		"abc", "-1", "72.5", "7 2", "9223372036854775808", "\x00", "\x1b[2J", strings.Repeat("ä", 41), strings.Repeat("0", 1025), "help me",
		"quit" + strings.Repeat(" ", 1021),
	} {
		inVirtualTime(t, defaults(), func(h *hall) {
			mallory, alice := h.seat("mallory", math.MaxInt64), h.seat("alice", 1)
			mallory.types("70\n")
			alice.types("71\n")
			time.Sleep(time.Second)
			h.console.next()
			shown := []rune(strings.TrimSpace(typed))
			quoted := fmt.Sprintf("%q", string(shown[:min(len(shown), 40)]))
			h.match(mallory.types(typed+"\n"), "\nslashed: "+quoted+" is not a pulse (a whole number, 0 or more); 9223372036854775807 tokens forfeited\n")
			mallory.isGone()
			h.shows("validators: 1 with 1 tokens staked\n  <alice> 1\n  slashed: <mallory>\n    9223372036854775807 tokens, for " + quoted + "\n")
			h.warns("")
			const drawn = "ticket <ticket> of 9223372036854775808 was slashed, again: ticket 1 of 1"
			alice.plays("«28s later»\nwinning validator: <alice>\nblock 1, BPM 71: " + drawn + ", secret <secret>\nyou forged block 1\ndraw 2 seal: <seal2>\n\nEnter a new BPM:" +
				"«draw»\n\nblock 1: " + drawn + "; the lines of its draw:\n<secret>\n<mallory> 9223372036854775807 slashed\n<alice> 1 71\n\nEnter a new BPM:")
			h.shows("block 1: BPM 71, " + drawn + ", proposals 2, stake 1 (100.0%), forged by\n  <alice>\ndraw 2 seal: <seal2>\n")
		})
	}
}

// A round holds as many proposals as there may be terminals, in all and from one address, also of those that have left.
func TestFullRound(t *testing.T) {
	s := defaults()
	s.maxClients, s.maxPerAddress = 6, 2
	inVirtualTime(t, s, func(h *hall) {
		one, two := netip.MustParsePrefix("10.0.0.7/32"), netip.MustParsePrefix("2001:db8::/64")
		for range 2 {
			for i, from := range []netip.Prefix{one, one, one, {}, {}, {}, two, two} {
				p := h.connectFrom(from)
				p.types("1\n")
				text := p.types("70\n")
				if i == 2 || i == 7 {
					h.match(text, "\nthe round is full; the next one opens in 30s\n\nEnter a new BPM:")
				} else {
					has(t, text, " proposed with BPM 70: tickets ")
				}
				p.leaves()
			}
			time.Sleep(30 * time.Second) // the next round is empty
		}
	})
}

// blocksIn reads a chain, or the end of one, and checks it by the words of the contract.
func blocksIn(t testing.TB, text string) []Block {
	t.Helper()
	var blocks []Block
	must(0, json.Unmarshal([]byte(text), &blocks))
	for i, b := range blocks {
		if b.Hash != hash(fmt.Sprintf("%d\n%s\n%d\n%s\n%s\n", b.Index, b.Timestamp, b.BPM, b.PrevHash, b.Validator)) ||
			i > 0 && (b.Index != blocks[i-1].Index+1 || b.PrevHash != blocks[i-1].Hash || b.Timestamp < blocks[i-1].Timestamp) {
			t.Fatalf("block %d is wrong: %+v", b.Index, blocks[max(0, i-1):i+1])
		}
	}
	return blocks
}

var broadcast = regexp.MustCompile(`(?m)^\[.*\]$`)

// The newest BROADCAST_BLOCKS blocks, or all, come every BROADCAST after a terminal connected.
func TestBroadcast(t *testing.T) {
	for _, limit := range []int{0, 1, 3, 10} {
		s := defaults()
		s.broadcastBlocks, s.broadcastEvery = limit, 40*time.Second
		s.roundLength = s.broadcastEvery
		inVirtualTime(t, s, func(h *hall) {
			time.Sleep(time.Second) // each broadcast comes a second behind a block
			eve := h.connect()
			eve.next()
			time.Sleep(time.Second)
			alice := h.seat("alice", 100)
			alice.types("72\n")
			alice.plays("«38s later»" + won(1, "alice", 72, 100, "you forged block 1\n") + "\nEnter a new BPM:")
			eve.next()
			eve.plays("«999ms later»«1ms later»\n[" + map[bool]string{true: `{"Index":0,"Timestamp":"2000-01-01T00:00:00.000000000Z","BPM":0,` +
				`"Hash":"9fa00adf97e0d81be3e68f14ea88337abd6eaddb6c7016a873733aa5e48ea371","PrevHash":"","Validator":""},`}[limit != 1] +
				`{"Index":1,"Timestamp":"2000-01-01T00:00:40.000000000Z","BPM":72,"Hash":"<hash>",` +
				`"PrevHash":"9fa00adf97e0d81be3e68f14ea88337abd6eaddb6c7016a873733aa5e48ea371","Validator":"<alice>"}]` + "\nEnter token balance:")
			alice.plays("«999ms later»")
			time.Sleep(time.Millisecond)
			has(t, alice.next(), "\n[{", "}]\n\nEnter a new BPM:")
			for newest := 2; newest <= 35; newest++ {
				alice.types("70\n")
				time.Sleep(s.roundLength)
				shown := broadcast.FindAllString(eve.next(), -1)
				all := map[bool]int{true: 99}[limit == 0]
				if blocks := blocksIn(t, shown[0]); len(shown) != 1 || blocks[len(blocks)-1].Index != newest || len(blocks) != min(limit+all, newest+1) {
					t.Fatalf("of %d blocks, %d are shown, up to block %d", newest+1, len(blocks), blocks[len(blocks)-1].Index)
				}
			}
		})
	}
}

// A terminal that does not read holds nobody up. It is cut off, the console says so, and its proposal stands.
func TestNotReading(t *testing.T) {
	inVirtualTime(t, defaults(), func(h *hall) {
		client, server := wire()
		served := make(chan struct{})
		go func() {
			h.handleConn(server, netip.Prefix{})
			close(served)
		}()
		go client.Write([]byte("100\n72\n"))
		io.ReadFull(client, make([]byte, 300)) // up to the proposal, then no more
		eve := h.connect()
		eve.plays("Enter token balance:«30s later»" + won(1, "alice", 72, 100, "") + "Enter token balance:«12s later»")
		<-served
		h.warns("1 terminals cut off: they did not read\n")
	})
}

// ---- Leaving ----

// The end of the input: a proposal stands, and its maker hears how the round ends.
func TestEndOfInput(t *testing.T) {
	inVirtualTime(t, defaults(), func(h *hall) {
		alice, bob, carol, eve := h.seat("alice", 100), h.seat("bob", 10), h.seat("carol", 20), h.connect()
		alice.types("72") // a last line without its end counts
		alice.plays("«^D»\nblock 1 proposed with BPM 72: tickets 1 to 100; the winner is drawn in 30s\n\nEnter a new BPM:")
		bob.plays("«^D»«closed»") // without a proposal there is nothing to wait for
		eve.plays("Enter token balance:«^D»«closed»")
		time.Sleep(28 * time.Second)
		alice.plays(won(1, "alice", 72, 100, "you forged block 1\n") + "«closed»")
		carol.plays(won(1, "alice", 72, 100, "") + "\nEnter a new BPM:")
		h.console.next()
		carol.plays("«^D»«closed»") // its round is over
		h.shows("validators: 0 with 0 tokens staked\n  left: <carol> 20\n")
	})
}

// A terminal that vanishes is off the list, also one whose input had ended before. Its proposal stands.
func TestVanishing(t *testing.T) {
	s := defaults()
	s.roundLength, s.broadcastEvery = 270*time.Second, time.Minute
	for _, endsBefore := range []bool{false, true} {
		inVirtualTime(t, s, func(h *hall) {
			eve, alice := h.connect(), h.seat("alice", 100)
			alice.types("72\n")
			time.Sleep(time.Second)
			h.console.next()
			if endsBefore {
				alice.plays("«^D»")
			}
			alice.vanishes()
			time.Sleep(time.Minute + time.Second) // the next broadcast finds that it is gone
			h.shows("validators: 0 with 0 tokens staked\n  left: <alice> 100\n")
			alice.isGone()
			time.Sleep(187 * time.Second)
			eve.next()
			eve.plays("«20s later»" + won(1, "alice", 72, 100, "") + "Enter token balance:")
			h.shows("block 1: BPM 72, ticket <ticket1> of 100, proposals 1, stake 100 (100.0%), forged by\n  <alice>\ndraw 2 seal: <seal2>\n")
		})
	}
}

// Ctrl-C: the open round is drawn at once and announced, then everybody hears goodbye.
func TestShutdown(t *testing.T) {
	inVirtualTime(t, onDisk(t), func(h *hall) {
		alice, bob, eve := h.seat("alice", 100), h.seat("bob", 10), h.connect()
		alice.types("72\n")
		bob.plays("«^D»")
		eve.next()
		h.stop()
		alice.plays(won(1, "alice", 72, 100, "you forged block 1\n") + "\nEnter a new BPM:\nthe server is shutting down\n«73»\n«closed»")
		eve.plays(won(1, "alice", 72, 100, "") + "Enter token balance:\nthe server is shutting down\n«closed»")
		h.connect().plays("Enter token balance:\nthe server is shutting down\n«closed»")
		has(t, verified(h.settings), "\nok: 1 draws\n")
	})
}

// displace puts something else in the place of a file, and returns what puts it back.
func displace(name string) (back func()) {
	must(0, errors.Join(os.Rename(name, name+".away"), os.Mkdir(name, 0o755)))
	return func() { must(0, errors.Join(os.Remove(name), os.Rename(name+".away", name))) }
}

// Ctrl-C while a block is being kept: it is waited for, and a pulse typed meanwhile comes too late.
func TestShutdownWhileKeeping(t *testing.T) {
	for _, kept := range []bool{true, false} {
		inVirtualTime(t, onDisk(t), func(h *hall) {
			alice, bob, carol := h.seat("alice", 100), h.seat("bob", 25), h.seat("carol", 1)
			alice.types("72\n")
			time.Sleep(29 * time.Second)
			back := displace(h.chainFile)
			bob.plays("«1.2s later»«80»\n«200ms later»")
			h.stop()
			carol.plays("«100ms later»«90»\n") // too late
			if !kept {
				bob.plays("«1.899s later»«1ms later»\nthe server is shutting down\n")
				if said := strings.Count(h.stderr.next(), "block 1 is not announced: it was not kept in time\n"); said != 1 {
					t.Errorf("that block 1 is not announced is said %d times", said)
				}
				back()
				return
			}
			back()
			const bye = "\nEnter a new BPM:\nthe server is shutting down\n"
			carol.plays("«500ms later»" + won(1, "alice", 72, 100, "") + bye)
			bob.plays(won(1, "alice", 72, 100, "") + bye)
		})
	}
}

// ---- Rounds ----

// A round without proposals, or in which all who proposed were slashed, ends in silence, and its seal stays.
func TestSilentRounds(t *testing.T) {
	inVirtualTime(t, onDisk(t), func(h *hall) {
		const joined = "Enter token balance:\nyou are validator <%s> with 100 tokens staked\ndraw 1 seal: <seal1>\n\nEnter a new BPM:"
		alice, bob, mallory := h.connect(), h.connect(), h.seat("mallory", 100)
		h.match(alice.types("100\n"), fmt.Sprintf(joined, "alice"))
		alice.plays("«10m later»")
		mallory.types("70\nno\n")
		alice.plays("«30s later»")
		h.match(bob.types("100\n"), fmt.Sprintf(joined, "bob"))
		bob.types("72\n")
		bob.plays("«30s later»" + won(1, "bob", 72, 100, "you forged block 1\n") + "\nEnter a new BPM:")
		has(t, hash(h.known["<secret1>"]+"\n"), h.known["<seal1>"])
	})
}

// A week: rounds end by the clock, and nothing grows.
func TestWeek(t *testing.T) {
	s := defaults()
	s.broadcastEvery = time.Minute
	inVirtualTime(t, s, func(h *hall) {
		alice := h.seat("alice", 1)
		const rounds = 7 * 24 * 60 * 2
		var shown string
		var memory, goroutines = int64(0), 0
		for round := range rounds {
			alice.types("70\n")
			time.Sleep(h.roundLength)
			shown = alice.next()
			h.console.next()
			if round == 100 {
				memory, goroutines = heap(), runtime.NumGoroutine()
			}
		}
		if m, g := heap(), runtime.NumGoroutine(); m > memory+1<<20 || g > goroutines+5 {
			t.Errorf("after a week %d bytes and %d goroutines, before %d and %d", m, g, memory, goroutines)
		}
		blocks := blocksIn(t, broadcast.FindString(shown))
		if head := blocks[len(blocks)-1]; head.Index != rounds && head.Index != rounds-1 || head.Timestamp !=
			time.Date(2000, 1, 1, 0, 0, 30*head.Index, 0, time.UTC).Format("2006-01-02T15:04:05.000000000Z") {
			t.Errorf("after a week, the newest block is %+v", head)
		}
	})
}

// A draw is made once. Until it and its block are kept, nobody is told, and nobody waits but who proposes. Then it goes on
// by itself, by the clock, and nothing is made up for.
func TestDrawnOnce(t *testing.T) {
	for _, which := range []string{"chain", "draws"} {
		inVirtualTime(t, onDisk(t), func(h *hall) {
			const prompt, later = "\nEnter a new BPM:", "\nblock 1 is drawn and cannot be kept yet; try again later\n\nEnter a new BPM:"
			const joined = "Enter token balance:\nyou are validator <%s> with %d tokens staked\ndraw 1 seal: <seal1>\n\nEnter a new BPM:"
			const proposed = "\nblock %d proposed with BPM 92: tickets 1 to 10; the winner is drawn in %s\n" + prompt
			alice, bob, carol, eve := h.connect(), h.seat("bob", 25), h.connect(), h.connect()
			h.match(alice.types("100\n"), fmt.Sprintf(joined, "alice", 100))
			alice.types("72\n")
			bob.types("68\n")
			time.Sleep(29 * time.Second)
			name := map[string]string{"chain": h.chainFile, "draws": h.drawsFile}[which]
			back := displace(name)
			eve.plays("Enter token balance:«1s later»«»\nEnter token balance:") // the round has ended
			h.match(carol.types("10\n"), fmt.Sprintf(joined, "carol", 10))
			carol.plays("«500ms later»«90»\n«499ms later»«1ms later»" + later + "«91»\n" + later + "«»\n" + later)
			has(t, bob.types("no\n"), "25 tokens forfeited\n")
			why := regexp.MustCompile("block 1 is drawn and cannot be kept: .*" + regexp.QuoteMeta(name) + ".*; it is tried again every second\n")
			said := func(times int, last string) {
				t.Helper()
				text := h.stderr.next()
				if len(why.FindAllString(text, -1)) != times || !strings.HasSuffix(text, last) || strings.Count(text, " is kept\n") > 1 {
					t.Errorf("the log says %q", text)
				}
			}
			said(1, "block 1 is not kept after a second: until it is, nobody can propose\n")
			record, _ := os.ReadFile(h.drawsFile)
			time.Sleep(60500 * time.Millisecond)
			said(1, "every second\n")
			eve.plays("")
			back()
			time.Sleep(500 * time.Millisecond)
			eve.audit(h.known["<seal1>"], []string{h.known["<alice>"] + " 100 72", h.known["<bob>"] + " 25 68"})
			said(0, "block 1 is kept\n")
			if after := read(h.drawsFile); which == "chain" && !bytes.Equal(after, record) || bytes.Count(after, []byte("\n")) != 1 {
				t.Errorf("the draws file was %q, and is %q", record, after)
			}
			carol.next()
			carol.plays("«92»\n" + fmt.Sprintf(proposed, 2, "30s") + "«29s later»")
			back = displace(name)
			carol.plays("«3.5s later»")
			back()
			carol.plays("«500ms later»" + won(2, "carol", 92, 10, "you forged block 2\n") + prompt + "«92»\n" + fmt.Sprintf(proposed, 3, "27s") +
				"«26.999s later»«1ms later»" + won(3, "carol", 92, 10, "you forged block 3\n") + prompt + "«92»\n" + fmt.Sprintf(proposed, 4, "30s") +
				"«»\n\nblock 4: proposals 1, tokens 10, yours 10 (100.0%); the winner is drawn in 30s\n" + prompt + "«29.999s later»")
			said(0, "block 2 is kept\n")
		})
	}
}

// ---- The draw ----

var (
	announced = regexp.MustCompile(`\nwinning validator: (.+)\nblock (\d+), BPM (\d+): (.+), secret (.+)\n(?:you forged block \d+\n)?draw \d+ seal: (.+)\n`)
	accepted  = regexp.MustCompile(`\nblock (\d+) proposed with BPM (\d+): tickets (\d+) to (\d+); `)
)

// audit draws once more what p has just heard of: seal was told before it, and entries are its lines behind the secret. It
// returns the words for its ticket, the address of its winner, and the next seal.
func (p *person) audit(seal string, entries []string) (words, winner, next string) {
	p.h.t.Helper()
	shown := p.next()
	heard := announced.FindStringSubmatch(shown)
	if heard == nil {
		p.h.t.Fatalf("there is no winner: %q", shown)
	}
	lines := append([]string{heard[5]}, entries...)
	words, line := redraw(lines)
	if hash(heard[5]+"\n") != seal || len(heard[5]) < 26 || heard[1] != line[0] || heard[3] != line[2] || heard[4] != words {
		p.h.t.Fatalf("%q, but with seal %s, %q give %s, won by %s", shown, seal, lines, words, line)
	}
	has(p.h.t, p.types("draw\n"), fmt.Sprintf("\nblock %s: %s; the lines of its draw:\n%s\n", heard[2], words, strings.Join(lines, "\n")))
	return words, line[0], heard[6]
}

// playRounds plays rounds of validators with these stakes, who propose in this order; in every second one a newcomer proposes
// behind the first of them, and in every fourth it is slashed. Each draw is audited, and its ticket must be one that the winner
// was told. It returns chi-square of the wins against the stakes, and its degrees of freedom.
func playRounds(t *testing.T, rounds int, stakes []int64, order []int, newcomer int64) (chi2, degrees float64) {
	s := defaults()
	s.roundLength = time.Second
	inVirtualTime(t, s, func(h *hall) {
		eve := h.connect()
		h.match(eve.types("1\n"), "Enter token balance:\nyou are validator <eve> with 1 tokens staked\ndraw 1 seal: <seal>\n\nEnter a new BPM:")
		seal, stakes := h.known["<seal>"], append(stakes, newcomer)
		seats := make([]*person, len(order))
		for i := range seats {
			seats[i] = h.seat(strconv.Itoa(i), stakes[i])
		}
		var wins, expected [4][5]float64 // by the kind of round, then by who it is
		for round := range rounds {
			var entries []string
			var proposers []int // of entries; -1: slashed
			var told []string   // their first and last tickets
			proposes := func(p *person, who int) {
				told = append(told, accepted.FindStringSubmatch(p.types(fmt.Sprintln(60 + who)))[3:]...)
				entries = append(entries, fmt.Sprintf("%s %d %d", h.known[fmt.Sprintf("<%d>", who)], stakes[who], 60+who))
				proposers = append(proposers, who)
			}
			kind, all := round%4, 0.0
			for i, who := range order {
				proposes(seats[who], who)
				if all += float64(stakes[who]); i > 0 || kind%2 == 0 {
					continue
				}
				p := h.seat(strconv.Itoa(len(order)), newcomer)
				if proposes(p, len(order)); kind == 1 {
					all += float64(newcomer)
				} else {
					p.types("no\n")
					entries[1], proposers[1] = fmt.Sprintf("%s %d slashed", h.known[fmt.Sprintf("<%d>", len(order))], newcomer), -1
				}
				p.leaves()
			}
			time.Sleep(s.roundLength)
			words, winner, next := eve.audit(seal, entries)
			seal = next
			for i, who := range proposers {
				first, last, ticket := new(big.Int), new(big.Int), new(big.Int)
				fmt.Sscan(told[2*i]+" "+told[2*i+1], first, last)
				fmt.Sscanf(words, "ticket %d of", ticket)
				wins := &wins[kind]
				if won := strings.HasPrefix(entries[i], winner); won {
					wins[who]++
				} else if ticket.Cmp(first) >= 0 && ticket.Cmp(last) <= 0 && who >= 0 {
					t.Fatalf("%s was drawn, which %s holds, and %s has won", words, entries[i], winner)
				}
				if who >= 0 {
					expected[kind][who] += float64(stakes[who]) / all
				}
			}
		}
		for kind := range expected {
			degrees--
			for who, e := range expected[kind] {
				if w := wins[kind][who]; e >= 5 {
					chi2 += (w - e) * (w - e) / e
					degrees++
				} else if w > 20 { // too few for chi-square
					t.Errorf("%v wins, of which %.1f were to be expected", w, e)
				}
			}
		}
	})
	return chi2, degrees
}

// Wins follow stakes, in whatever order people propose, whoever joins in mid-round, and however large the stakes are.
func TestWinsFollowStakes(t *testing.T) {
	var all, allDegrees float64
	fair := func(chi2, degrees float64, order []int) {
		// What chi-square passes with a probability of 1e-6: Wilson and Hilferty's approximation.
		if limit := degrees * math.Pow(1-2/(9*degrees)+4.7534*math.Sqrt(2/(9*degrees)), 3); chi2 > limit {
			t.Errorf("proposing in the order %v: chi-square %.1f for %v degrees of freedom", order, chi2, degrees)
		}
	}
	for _, order := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
		chi2, degrees := playRounds(t, 1000, []int64{1, 2, 7}, order, 5)
		fair(chi2, degrees, order)
		all, allDegrees = all+chi2, allDegrees+degrees
	}
	fair(all, allDegrees, nil)
	chi2, degrees := playRounds(t, 400, []int64{math.MaxInt64, 1, math.MaxInt64, 1 << 62}, []int{3, 1, 0, 2}, math.MaxInt64)
	fair(chi2, degrees, []int{3, 1, 0, 2})
}

// Nobody guesses or repeats an address or a secret, not even at the same instant of another evening.
func TestNobodyForesees(t *testing.T) {
	seen := map[string]bool{}
	for range 2 {
		inVirtualTime(t, defaults(), func(h *hall) {
			for range 50 {
				for _, digest := range regexp.MustCompile("[0-9a-f]{64}").FindAllString(h.connect().types("1\n"), -1) {
					seen[digest] = true
				}
			}
		})
	}
	if len(seen) != 2*(50+1) {
		t.Errorf("100 validators in two rounds have %d addresses and seals", len(seen))
	}
}

// ---- The console ----

// list is the lines of a list, sorted.
func list(format string, values []string) (text string) {
	for _, v := range slices.Sorted(slices.Values(values)) {
		text += fmt.Sprintf(format, v)
	}
	return text
}

// Up to 20 validators are all on the console, past that the newest and the totals; then who left and who was slashed, or how many.
func TestConsole(t *testing.T) {
	inVirtualTime(t, defaults(), func(h *hall) {
		var people []*person
		var addresses []string
		come := func(n int) (new []string) {
			for range n {
				people = append(people, h.seat("new", math.MaxInt64))
				addresses = append(addresses, h.known["<new>"])
			}
			return addresses[len(addresses)-n:]
		}
		report := func(want string) { // its lines may be in any order
			t.Helper()
			h.shows("")
			time.Sleep(time.Second)
			if text := h.console.next(); list("%s", strings.SplitAfter(text, "\n")) != list("%s", strings.SplitAfter(want, "\n")) {
				t.Errorf("the console shows\n%s\nwant\n%s", text, want)
			}
		}
		h.console.next()
		const line = "  %s 9223372036854775807\n"
		come(2)
		report("validators: 2 with 18446744073709551614 tokens staked\n" + list(line, addresses))
		come(18)
		report("validators: 20 with 184467440737095516140 tokens staked\n" + list(line, addresses))
		report("validators: 21 with 193690812773950291947 tokens staked\n" + list(line, come(1)))
		report("validators: 44 with 405828369621610135508 tokens staked\n" + list(line, come(23)[3:]) + "  and 3 more have joined\n")
		people[5].types("\x1b[2J\n")
		for i := range 5 {
			people[i].leaves()
		}
		report("validators: 38 with 350488137400481480666 tokens staked\n" + list("  left: %s 9223372036854775807\n", addresses[:5]) +
			"  slashed: " + addresses[5] + "\n    9223372036854775807 tokens, for \"\\x1b[2J\"\n")
		for i := range 6 {
			people[6+i].leaves()
			people[12+i].types("no\n")
		}
		report("validators: 26 with 239807672958224170982 tokens staked\n  left: 6 validators\n  slashed: 6 validators\n")
		come(500)
		time.Sleep(time.Second)
		if text := h.console.next(); strings.Count(text, "\n") != 22 {
			t.Errorf("of 500 who come at once the console shows %s", text)
		}
		for _, test := range []struct {
			every, long time.Duration
			reports     int
		}{{100 * time.Millisecond, 20 * time.Second, 20}, {2 * time.Second, 6 * time.Hour, 60 + 6*120}} { // of one who comes and goes
			for range test.long / test.every {
				h.seat("new", 1).leaves()
				time.Sleep(test.every)
			}
			if n := strings.Count(h.console.next(), "validators: "); n > test.reports || n < test.reports*9/10 {
				t.Errorf("%d reports in %v, want %d", n, test.long, test.reports)
			}
		}
	})
}

// ---- Blocks and files ----

// played is what files hold after so many rounds. In each, three validators with huge stakes proposed, and one of them was slashed.
// (With small stakes, another digest often comes to the same ticket.)
func played(t *testing.T, rounds int) settings {
	s := onDisk(t)
	inVirtualTime(t, s, func(h *hall) {
		for range rounds {
			for i := range 3 {
				p := h.seat("new", math.MaxInt64-int64(i))
				p.types(fmt.Sprintln(70 + i))
				if i == 2 {
					p.types("no\n")
				}
				p.leaves()
			}
			time.Sleep(s.roundLength)
		}
	})
	return s
}

// verified is what verify says of the files of s.
func verified(s settings) string {
	var out bytes.Buffer
	if err := verify(s.chainFile, s.drawsFile, &out, &out); err != nil {
		fmt.Fprintf(&out, "error: %v", err)
	}
	return out.String()
}

// restarted is what a server says that starts with the files of s.
func restarted(ctx context.Context, s settings) string {
	var out, stderr bytes.Buffer
	if n, err := newNetwork(ctx, s, &out, log.New(&stderr, "log: ", 0)); err != nil {
		fmt.Fprintf(&out, "error: %v", err)
	} else {
		n.close()
	}
	return out.String() + stderr.String()
}

func read(name string) []byte { return must(os.ReadFile(name)) }
func write(name string, text ...string) {
	must(0, os.WriteFile(name, []byte(strings.Join(text, "")), 0o644))
}

// A server goes on where the last one was; its draws file as well, in which a seal made anew is told from a fault.
func TestRestartGoesOn(t *testing.T) {
	s := played(t, 2)
	head := func() string {
		blocks := blocksIn(t, "["+strings.ReplaceAll(strings.TrimSpace(string(read(s.chainFile))), "\n", ",")+"]")
		return blocks[len(blocks)-1].Hash
	}
	for blocks := 3; blocks <= 4; blocks++ {
		inVirtualTime(t, s, func(h *hall) {
			has(t, h.console.next(), "(main.Block) {\n Index: (int) 0,", fmt.Sprintf("}\nrestored %d blocks from %s, head %s\n", blocks, s.chainFile, head()))
			has(t, h.seat("alice", 5).types("70\n"), fmt.Sprintf("\nblock %d proposed", blocks))
			time.Sleep(s.roundLength)
		})
	}
	has(t, verified(s), fmt.Sprintf("ok: 5 blocks, head %s\nok: 4 draws; the seal was made anew 2 times, as after a restart (lines 3, 4)\n", head()))
	has(t, restarted(t.Context(), s), `"2000-01-01T00:00:00.000000000Z",`) // the genesis block
	// A clock that was set back: no block is older than the one before it.
	has(t, generateBlock(Block{Timestamp: "2100-01-01T00:00:00.000000000Z"}, 0, "").Timestamp, "2100")
}

// A crash may leave the file cut anywhere, and an editor may take the last newline. The whole blocks are all there after a
// restart; what is left of another is gone, and that is said.
func TestChainFileCutAtEveryByte(t *testing.T) {
	t.Parallel()
	s := played(t, 1)
	file := string(read(s.chainFile))
	for cut := range file {
		write(s.chainFile, file[:cut])
		said := restarted(t.Context(), s)
		whole := strings.LastIndex(file[:cut+1], "\n") + 1 // a whole last block without its newline is kept
		blocks := strings.Count(file[:whole], "\n")
		if got := string(read(s.chainFile)); !strings.HasPrefix(got, file[:whole]) || blocks > 0 && len(got) > whole || strings.Contains(said, "error: ") ||
			blocks > 0 != strings.Contains(said, fmt.Sprintf("\nrestored %d blocks from ", blocks)) {
			t.Fatalf("cut at %d, it says %s, and leaves %q of %q", cut, said, got, file)
		}
		torn := cut > 0 && file[cut-1] != '\n'
		if torn != strings.Contains(said, "log: "+s.chainFile+": ") || torn && (cut < whole) != strings.Contains(said, "is kept") {
			t.Fatalf("cut at %d of %q, it says %s", cut, file, said)
		}
	}
}

// Whatever byte of a chain file is damaged, verify and a start name the line, and the file stays as it is.
func TestChainFileEveryByteFlipped(t *testing.T) {
	t.Parallel()
	s := played(t, 1)
	s.drawsFile = ""
	file := read(s.chainFile)
	for at, good := range file {
		line := fmt.Sprintf("line %d: ", bytes.Count(file[:at], []byte("\n"))+1)
		for _, bad := range []byte{good ^ 0x01, good ^ 0x20, good ^ 0x80, '\n', '}'} {
			file[at] = bad
			write(s.chainFile, string(file))
			if said := verified(s); bad != good && at < len(file)-1 && !strings.HasPrefix(said, "error: "+s.chainFile+": "+line) {
				t.Fatalf("byte %d %q as %q: verify says %s, want %s", at, good, bad, said, line)
			}
		}
		said := restarted(t.Context(), s)
		if good != '}' && (!strings.Contains(said, "error: ") || !strings.Contains(said, line) || !bytes.Equal(read(s.chainFile), file)) {
			t.Fatalf("byte %d %q as '}': the start says %s, want %s, and leaves %q", at, good, said, line, read(s.chainFile))
		}
		file[at] = good
	}
}

// A block that was changed breaks the chain, even with a hash that fits again; blocks of which each is right, but which do not
// follow each other, are no chain; and a block has one spelling.
func TestChainFileFaults(t *testing.T) {
	s := played(t, 3)
	s.drawsFile = ""
	lines := strings.SplitAfter(string(read(s.chainFile)), "\n")
	other := strings.SplitAfter(string(read(played(t, 3).chainFile)), "\n")
	fault := func(fault string, file ...string) {
		t.Helper()
		write(s.chainFile, file...)
		has(t, verified(s), "error: "+s.chainFile+": "+fault)
		has(t, restarted(t.Context(), s), "error: ", fault)
	}
	encoded := func(b Block) string { return string(must(json.Marshal(b))) + "\n" }
	fault("line 3: wrong index", lines[0], lines[1], lines[3])
	fault("line 2: wrong index", lines[0], lines[0])
	fault("line 1: wrong index", lines[1])
	fault("line 3: wrong link", lines[0], lines[1], other[2])
	fault("line 1: wrong genesis", encoded(generateBlock(beforeGenesis(), 1, "")))
	fault("line 1: wrong genesis", encoded(generateBlock(beforeGenesis(), 0, "somebody")))
	// A newline in a field would let two blocks have the same hash.
	genesis := blocksIn(t, "["+lines[0]+"]")[0]
	fault("line 2: wrong BPM", lines[0], encoded(generateBlock(genesis, -1, genesis.Hash)))
	fault("line 2: wrong validator", lines[0], encoded(generateBlock(genesis, 70, "")))
	fault("line 2: wrong validator", lines[0], encoded(generateBlock(genesis, 70, genesis.Hash[1:]+"\n")))
	for _, stamp := range []string{
		"zzz", "2026-11-23T15:38:49Z", "2026-11-23T15:38:49.1234+01:00", "2026-11-23T15:38:49,123456789Z", genesis.Timestamp + "\n7",
	} {
		b := generateBlock(genesis, 70, genesis.Hash)
		b.Timestamp = stamp
		b.Hash = calculateBlockHash(b)
		fault("line 2: wrong timestamp", lines[0], encoded(b))
	}
	b := blocksIn(t, "["+lines[1]+"]")[0]
	b.Timestamp = genesis.Timestamp
	fault("line 2: wrong hash", lines[0], encoded(b), lines[2])
	b.Hash = calculateBlockHash(b)
	fault("line 3: wrong link", lines[0], encoded(b), lines[2])
	for _, spelling := range [][2]string{
		{"{", " {"}, {"}", "} "}, {":", ": "}, {`"Index"`, `"index"`}, {`"Index":`, `"Index":0`}, {`"Hash"`, `"Hash":"","Hash"`}, {"T", `\u0054`}, {"\n", "\r\n"},
	} {
		fault("line 2: bad JSON", lines[0], strings.Replace(lines[1], spelling[0], spelling[1], 1), lines[2])
	}
	for _, end := range []string{"", "\r"} { // no line is left, or it is no chain
		for _, file := range []string{strings.ReplaceAll(strings.Join(lines, ""), "\n", end), "a thesis" + end} {
			write(s.chainFile, file)
			has(t, restarted(t.Context(), s)+string(read(s.chainFile)), "error: ", "line 1: it has no end, and is no part of a genesis block", file)
		}
	}
	for _, torn := range []string{"\x00\x00", `{"In` + "\x00", lines[0][:50] + "\x00"} { // as a power cut may leave it
		write(s.chainFile, torn)
		has(t, restarted(t.Context(), s), "log: "+s.chainFile+": dropping a last line without its end")
	}
	write(s.chainFile, lines[0], lines[1][:100])
	has(t, verified(s), "does not count", "ok: 1 blocks, ")
	write(s.chainFile, "{")
	has(t, verified(s), "error: "+s.chainFile+": there is no genesis")
	s.chainFile += ".none"
	has(t, verified(s), "error: ")
}

// record is a line of a draws file.
type record struct {
	Index         int
	Block         string
	Lines         []string
	Ticket, Total *big.Int
	NextSeal      string
}

// A fault in a draws file is named with its line. A record may be missing, and one that a crash kept from being announced counts
// for nothing.
func TestDrawsFile(t *testing.T) {
	s := played(t, 3)
	lines := strings.SplitAfter(string(read(s.drawsFile)), "\n")
	says := func(want string, file ...string) {
		t.Helper()
		write(s.drawsFile, file...)
		has(t, verified(s), want)
	}
	fault := "error: " + s.drawsFile + ": line "
	says("\nok: 3 draws\n", lines...)
	says("\nok: 2 draws; 1 blocks have no record of their draw\n", lines[0], lines[2])
	says("\nok: 1 draws; 2 blocks have no record of their draw\n", lines[2], lines[0][:100])
	says("\nok: 0 draws; 3 blocks have no record of their draw\n", "")
	says(fault+"2: ", lines[0], strings.Replace(lines[1], " 70", " 71", 1), lines[2])
	says(fault+"4: ", lines[0], lines[1], lines[2], lines[2])

	// The third block is lost; the draw of the next one in its place stands behind its own.
	chain := strings.SplitAfter(string(read(s.chainFile)), "\n")
	write(s.chainFile, chain[:3]...)
	says("\nok: 2 draws\n", lines...)
	write(s.drawsFile, strings.Join(lines, ""), lines[0][:100])
	if restarted(t.Context(), s); string(read(s.drawsFile)) != strings.Join(lines, "") {
		t.Error("a part of a line stays")
	}
	foreign := s
	foreign.drawsFile += ".txt"
	write(foreign.drawsFile, "a thesis\nabout stakes")
	has(t, restarted(t.Context(), foreign)+string(read(foreign.drawsFile)), "error: ", ": it is no draws file", "a thesis\nabout stakes")
	inVirtualTime(t, s, func(h *hall) {
		alice := h.seat("alice", 5)
		for range 2 {
			alice.types("70\n")
			time.Sleep(s.roundLength)
		}
	})
	lines = strings.SplitAfter(string(read(s.drawsFile)), "\n")
	says(fault+"3: ", lines[0], lines[1], lines[2], lines[4])
	says("\nok: 4 draws; the seal was made anew 1 times, as after a restart (lines 4)\n", lines...)
	var shown bytes.Buffer
	must(0, draw.Fairness(&shown, s.drawsFile))
	has(t, shown.String(), "4 rounds, 5 validators")
	if draw.Fairness(io.Discard, s.drawsFile+".none") == nil {
		t.Error("a draws file that does not exist is fair")
	}
}

// While a server runs, its draws file may be moved. Who edits its chain file, though the size stays, is told what to do.
func TestFilesChanged(t *testing.T) {
	inVirtualTime(t, onDisk(t), func(h *hall) {
		alice := h.seat("alice", 5)
		round := func() { alice.types("70\n"); time.Sleep(h.roundLength); alice.next() }
		round()
		must(0, os.Rename(h.drawsFile, h.drawsFile+".old"))
		round()
		has(t, h.stderr.next(), h.drawsFile+": somebody else has changed it: it is gone; the draws go on in the file of that name that is there now\n")
		has(t, verified(h.settings), "ok: 3 blocks, ", "ok: 1 draws; 1 blocks have no record of their draw\n")
		must(0, os.Chtimes(h.chainFile, time.Time{}, time.Unix(1, 0)))
		round()
		has(t, h.stderr.next(), "block 3 is drawn and cannot be kept: ", "it was edited: if it was moved, move it back; else restart the server, which checks it; it is tried")
	})
}

// A start that is given up while the chain is read leaves the file as it is, and free for others; two servers never share one.
func TestFilesInUse(t *testing.T) {
	s := played(t, 2)
	ctx, stop := context.WithCancel(t.Context())
	stop()
	before := read(s.chainFile)
	has(t, restarted(ctx, s)+string(read(s.chainFile)), "error: ", string(before))
	n := must(newNetwork(t.Context(), s, io.Discard, log.Default()))
	defer n.close()
	has(t, restarted(t.Context(), s), "error: CHAIN_FILE="+strconv.Quote(s.chainFile), "in use")
	s.chainFile += "2"
	has(t, restarted(t.Context(), s), "error: DRAWS_FILE="+strconv.Quote(s.drawsFile), "in use")
}

// What a server holds does not grow with the chain.
func TestRestoredMemoryIsFlat(t *testing.T) {
	holds := func(blocks int) int64 {
		s := writeFiles(t, blocks, 0)
		before := heap()
		defer must(newNetwork(t.Context(), s, io.Discard, log.Default())).close()
		return heap() - before
	}
	if few, many := holds(1000), holds(20_000); many > few+512<<10 {
		t.Errorf("with 1,000 blocks a server holds %d bytes, with 20,000 %d", few, many)
	}
}

// ---- Crowds ----

// guest sits at a terminal in real time.
type guest struct {
	net.Conn
	heard string
}

// says types text and returns what the terminal shows up to until; less if the connection is closed.
func (g *guest) says(text, until string) (shown string) {
	go io.WriteString(g, text)
	for buf := make([]byte, 512); ; {
		if before, after, found := strings.Cut(g.heard, until); found {
			g.heard = after
			return before + until
		}
		n, err := g.Read(buf)
		if g.heard += string(buf[:n]); err != nil {
			return g.heard
		}
	}
}

// guest gives h one more terminal, and returns what resets its connection.
func (h *hall) guest() (g *guest, reset func()) {
	client, server := wire()
	served := make(chan struct{})
	go func() { h.handleConn(server, netip.Prefix{}); close(served) }()
	return &guest{Conn: client}, func() { server.Close(); <-served; client.Close() }
}

// visits is how long it takes n guests to come one after the other, say something and vanish.
func (h *hall) visits(n int, says, until string) time.Duration {
	start := time.Now()
	for range n {
		g, reset := h.guest()
		g.says(says, until)
		reset()
	}
	return time.Since(start)
}

// shut ends a network in real time, whose terminals have all left.
func (h *hall) shut() {
	h.stop()
	<-h.stopped
	h.close()
}

// Proposals are made while rounds end: each counts in the round that its answer names, and in no other; no block is lost. The
// files agree while they grow.
func TestRoundBoundary(t *testing.T) {
	s := onDisk(t)
	s.roundLength = time.Millisecond
	h := open(t, s, nil)
	var mu sync.Mutex
	told := map[string][]string{} // lines by block
	var crowd sync.WaitGroup
	for range 24 {
		crowd.Go(func() {
			g, reset := h.guest()
			defer reset()
			g.says("1\n", "you are validator ")
			address := strings.TrimSuffix(g.says("", " "), " ")
			g.says("", "Enter a new BPM:")
			for range 50 {
				bpm := rand.IntN(1000)
				time.Sleep(time.Duration(rand.IntN(1000)) * time.Microsecond)
				m := accepted.FindStringSubmatch(g.says(fmt.Sprintln(bpm), "\nEnter a new BPM:"))
				for m == nil { // it heard of another round before the answer
					m = accepted.FindStringSubmatch(g.says("", "\nEnter a new BPM:"))
				}
				mu.Lock()
				told[m[1]] = append(told[m[1]], fmt.Sprintf("%s 1 %d", address, bpm))
				mu.Unlock()
				g.says("", "winning validator: ")
			}
		})
	}
	over := make(chan struct{})
	go func() { crowd.Wait(); close(over) }()
	for open := true; open; {
		select {
		case <-over:
			open = false
			h.shut()
		default:
		}
		if has(t, verified(s), "\nok: "); !open {
			has(t, verified(s), fmt.Sprintf("\nok: %d draws\n", len(told)))
		}
	}
	for line := range bytes.Lines(read(s.drawsFile)) {
		var r record
		json.Unmarshal(line, &r)
		if lines := told[strconv.Itoa(r.Index)]; list("%s\n", lines) != list("%s\n", r.Lines[1:]) {
			t.Errorf("block %d was drawn of %v, those told so were %v", r.Index, r.Lines[1:], lines)
		}
	}
}

// settled waits until ok, or half a minute, and reports which.
func settled(ok func() bool) bool {
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// heap is how much memory is in use.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what pools hold
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// dial connects a guest over a real socket, for a minute at most.
func dial(ln net.Listener) *guest {
	g := &guest{Conn: must(net.Dial("tcp", ln.Addr().String()))}
	g.SetDeadline(time.Now().Add(time.Minute))
	return g
}

// elsewhere is a listener to which all seem to come from one address that is not this machine's.
type elsewhere struct{ *net.TCPListener }

type visitor struct{ net.Conn }

func (l elsewhere) Accept() (net.Conn, error) {
	conn, err := l.TCPListener.Accept()
	return visitor{conn}, err
}
func (visitor) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(10, 0, 0, 7)} }

// When all places are taken, or all of an address.
func TestFullServer(t *testing.T) {
	for words, limits := range map[string][2]int{
		"the server is full, try again later\n": {1, 2}, "too many terminals from your address, try again later\n": {2, 1},
	} {
		s := defaults()
		s.maxClients, s.maxPerAddress = limits[0], limits[1]
		ln := elsewhere{must(net.Listen("tcp", "127.0.0.1:0")).(*net.TCPListener)}
		h := open(t, s, ln)
		first := dial(ln)
		first.says("", "Enter token balance:")
		has(t, dial(ln).says("", words), words)
		first.Close()
		if !settled(func() bool { return strings.HasPrefix(dial(ln).says("", ":"), "Enter") }) {
			t.Errorf("after %q nobody is let in again", words)
		}
		h.stop()
		<-h.stopped
	}
}

// Over real sockets: 2,000 validators at once (the tutorial's program dies of 200 to 400), then 20,000 that come, stake, propose,
// misbehave in turn and leave. Then everything is as before.
func TestCrowd(t *testing.T) {
	s := defaults()
	s.maxClients, s.roundLength = 0, 50*time.Millisecond
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	h := open(t, s, ln.(*net.TCPListener))
	crowd := func(size int, play func(i int, g *guest)) {
		var all sync.WaitGroup
		for i := range size {
			all.Go(func() {
				g := dial(ln)
				defer g.Close()
				play(i, g)
			})
		}
		all.Wait()
	}
	crowd(1, func(_ int, g *guest) { g.says("quit\n", "goodbye") }) // all is up
	goroutines := runtime.NumGoroutine()
	var staked sync.WaitGroup
	staked.Add(2000)
	crowd(2000, func(i int, g *guest) {
		g.says("1\n", "Enter a new BPM:")
		staked.Done()
		staked.Wait()
		if i == 0 {
			go io.WriteString(g, "72\n")
		}
		has(t, g.says("", " of 1, secret "), "\nwinning validator: ")
	})
	visits := []string{"", "5\n", "5\n70\n", "5\n70", "5\nno\n", "x\nx\nx\n", "5", "\n\n5\n1\n2\n3\n" + strings.Repeat("y", 2000)}
	wave := func() {
		crowd(500, func(i int, g *guest) {
			io.WriteString(g, visits[i%len(visits)])
			if g.Read(make([]byte, 100)); i%3 == 0 {
				g.Conn.(*net.TCPConn).CloseWrite()
				io.Copy(io.Discard, g)
			}
		})
	}
	left := func() bool { return runtime.NumGoroutine() <= goroutines }
	wave()
	settled(left)
	before := heap()
	for range 39 {
		wave()
	}
	if !settled(func() bool { return left() && heap() < before+2<<20 }) {
		t.Errorf("%d goroutines and %d bytes, before %d and %d", runtime.NumGoroutine(), heap(), goroutines, before)
	}
	shown := ""
	if !settled(func() bool {
		shown += h.console.take()
		return strings.HasPrefix(shown[strings.LastIndex(shown, "validators: "):], "validators: 0 with 0 tokens staked\n")
	}) {
		t.Errorf("the console shows %s", shown[strings.LastIndex(shown, "validators: "):])
	}
	h.stop()
	<-h.stopped
}

// A flood of proposals whose terminals have left: a line is all that each keeps, and slashing costs the same however many there are.
func TestFlood(t *testing.T) {
	const flood = 20000
	s := defaults()
	s.roundLength, s.maxClients = time.Hour, 0
	h := open(t, s, nil)
	slashing := func() time.Duration {
		const says, until = "1\n1\nx\n", "forfeited\n"
		return min(h.visits(64, says, until), h.visits(64, says, until), h.visits(64, says, until))
	}
	few, before := slashing(), heap()
	h.visits(flood, "1\n1\n", "proposed")
	if !settled(func() bool { return heap()-before < 300*flood }) {
		t.Errorf("a proposal keeps %d bytes", (heap()-before)/flood)
	}
	if !settled(func() bool { return slashing() < 2*few }) { // unless this machine had something else to do
		t.Errorf("to slash 64 takes %v, with %d other proposals more than twice as long", few, flood)
	}
	h.shut()
}

// ---- Fuzzing and settings ----

// Whatever a terminal sends, in whatever pieces, the server answers each line or closes, and others play on.
func FuzzTerminal(f *testing.F) {
	f.Add([]byte("100\n72\n"), uint8(3))
	f.Add([]byte("100\r\n\r\n72\r\n?\r\n73\nabc\n"), uint8(1))
	f.Add([]byte("\x00\xff\n\n0\n-1\ndraw\n"), uint8(200))
	f.Add(append(bytes.Repeat([]byte("x"), 5000), "\n5\n60"...), uint8(64))
	f.Fuzz(func(t *testing.T, data []byte, size uint8) {
		inVirtualTime(t, defaults(), func(h *hall) {
			p, other := h.connect(), h.seat("other", 1)
			other.types("70\n")
			go func() {
				for piece := range slices.Chunk(data, int(size)+1) {
					p.client.Write(piece)
				}
				p.client.CloseWrite()
			}()
			time.Sleep(h.roundLength)
			has(t, other.next(), "\nwinning validator: ")
			time.Sleep(2*h.roundLength + time.Duration(len(data))*20*time.Millisecond) // no byte costs more
			p.isGone()
			text, lines := p.next(), bytes.Count(data, []byte("\n"))
			answers := strings.Count(text, "Enter token balance:") + strings.Count(text, "\nEnter a new BPM:")
			left := strings.Contains(text, "goodbye") || strings.Contains(text, "slashed")
			if !left && answers < lines-bytes.Count(data, []byte("\xff")) || len(text) > 300*(lines+10) {
				t.Errorf("%d lines, %d prompts, %d bytes: %q", lines, answers, len(text), text)
			}
		})
	})
}

// No file makes the server or verify panic, both say the same of it, and what they take is a chain that is all of the file.
func FuzzReplay(f *testing.F) {
	genesis, _ := json.Marshal(generateBlock(beforeGenesis(), 0, ""))
	f.Add(append(genesis, '\n'))
	f.Add(genesis)
	f.Add(append(genesis, 'x'))
	f.Add([]byte("\n\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := onDisk(t)
		s.drawsFile = ""
		write(s.chainFile, string(data))
		says, starts := verified(s), !strings.Contains(restarted(t.Context(), s), "error: ")
		whole := string(data[:bytes.LastIndexByte(data, '\n')+1])
		ok := !strings.Contains(says, "error: ")
		if ok {
			blocks := blocksIn(t, "["+strings.ReplaceAll(strings.TrimSuffix(whole, "\n"), "\n", ",")+"]")
			has(t, says, fmt.Sprintf("ok: %d blocks, head %s\n", len(blocks), blocks[len(blocks)-1].Hash))
		}
		if left := string(read(s.chainFile)); starts && (!ok && whole != "" || !strings.HasPrefix(left, whole)) || !starts && left != string(data) {
			t.Errorf("the server starts with %q: %v, and leaves %q", data, starts, left)
		}
	})
}

func TestSettings(t *testing.T) {
	names := []string{"ADDR", "ROUND", "BROADCAST", "BROADCAST_BLOCKS", "CHAIN_FILE", "DRAWS_FILE", "MAX_STAKE", "MAX_CLIENTS", "MAX_PER_ADDRESS"}
	with := func(values ...string) (settings, error) { // "-": not set
		for i, name := range names {
			if t.Setenv(name, ""); i < len(values) && values[i] != "-" {
				os.Setenv(name, values[i])
			} else {
				os.Unsetenv(name)
			}
		}
		return loadSettings()
	}
	for values, want := range map[string]settings{
		"-":                              {":9000", 30 * time.Second, time.Minute, 10, "chain.jsonl", "draws.jsonl", math.MaxInt64, 10000, 1000},
		"127.0.0.1:0 1ms 2h 0 a b 9 0 0": {"127.0.0.1:0", time.Millisecond, 2 * time.Hour, 0, "a", "b", 9, 0, 0},
		"[::1]:80 1h 1s 7  - 1 2 3":      {"[::1]:80", time.Hour, time.Second, 7, "", "", 1, 2, 3},
		"host:1 1h 1s 7 a  1 2 3":        {"host:1", time.Hour, time.Second, 7, "a", "", 1, 2, 3},
	} {
		if got, err := with(strings.Split(values, " ")...); err != nil || got != want {
			t.Errorf("%s: %+v, %v", values, got, err)
		}
	}
	for i, bad := range [][]string{
		{"x", "", "70000", "-1", "localhost", "localhost:http", "1:2:3"}, {"0", "0s", "-1s", "abc", "30", ""}, {"0", "1 m"},
		{"-1", "all", "1.5", ""}, {}, {}, {"0", "-1", "9223372036854775808", "many"}, {"-1", "1e4"}, {"-1", "x"},
	} {
		for _, value := range bad {
			_, err := with(append(slices.Repeat([]string{"-"}, i), value)...)
			want := fmt.Sprintf("%s=%q is not right: want ", names[i], value)
			if err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v, want %s", err, want)
			}
		}
	}
}

// ---- Benchmarks ----

// BenchmarkDraw is the draw of one round. side=tutorial is a pool with one entry for each token, in which each proposer is
// looked for before it is put there; it survives no more than this.
func BenchmarkDraw(b *testing.B) {
	for _, proposers := range []int{100, 10_000, 100_000} {
		for _, tokens := range []int64{1000, 10_000, math.MaxInt64} {
			name := fmt.Sprintf("proposers=%d/tokens=%d/side=", proposers, tokens)
			d := draw.New()
			for i := range proposers {
				d.Add(draw.Entry{Name: hash(strconv.Itoa(i)), Tickets: tokens, Note: "70"})
			}
			b.Run(name+"ours", func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					d.Outcome(d.Lines())
				}
			})
			if proposers > 100 || tokens == math.MaxInt64 {
				continue
			}
			b.Run(name+"tutorial", func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					var pool []string
					for _, e := range d.Entries {
						if !slices.Contains(pool, e.Name) {
							pool = append(pool, slices.Repeat([]string{e.Name}, int(tokens))...)
						}
					}
					if pool[rand.IntN(len(pool))] == "" {
						b.Fatal("no winner")
					}
				}
			})
		}
	}
}

// side measures one way to read a file of so many things: also the time for each, and the most that the heap holds meanwhile.
func side(b *testing.B, name string, things int, unit string, read func()) {
	b.Run(name, func(b *testing.B) {
		stop, peaks := make(chan struct{}), make(chan uint64)
		go func() {
			var peak uint64
			for sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}; ; {
				select {
				case <-time.After(time.Millisecond):
					metrics.Read(sample)
					peak = max(peak, sample[0].Value.Uint64())
				case <-stop:
					peaks <- peak
					return
				}
			}
		}()
		for b.Loop() {
			read()
		}
		close(stop)
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*things), "ns/"+unit)
		b.ReportMetric(float64(<-peaks)/1024, "peak-KiB")
	})
}

// eachLine decodes each line of a file, which is the floor of reading it.
func eachLine[T any](name string, do func(T)) {
	f := must(os.Open(name))
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Buffer(nil, 128<<20); lines.Scan(); {
		var v T
		must(0, json.Unmarshal(lines.Bytes(), &v))
		do(v)
	}
}

func hashBlock(block Block) { calculateBlockHash(block) }

// writeFiles writes a chain of so many blocks, and if there were proposals, how each was drawn.
func writeFiles(t testing.TB, blocks, proposals int) settings {
	s := onDisk(t)
	var chain, draws bytes.Buffer
	block := generateBlock(beforeGenesis(), 0, "")
	json.NewEncoder(&chain).Encode(block)
	for i := 1; i < blocks; i++ {
		const secret = "AAAAAAAAAAAAAAAAAAAAAAAAAA"
		r := record{Index: i, Lines: []string{secret}, Ticket: new(big.Int), Total: new(big.Int), NextSeal: hash(secret + "\n")}
		for j := range max(proposals, 1) {
			r.Lines = append(r.Lines, fmt.Sprintf("%s %d 70", hash(block.Hash+strconv.Itoa(j)), 100+j))
		}
		words, winner := redraw(r.Lines)
		fmt.Sscanf(words, "ticket %d of %d", r.Ticket, r.Total)
		block = generateBlock(block, 70, winner[0])
		r.Block = block.Hash
		if json.NewEncoder(&chain).Encode(block); proposals > 0 {
			json.NewEncoder(&draws).Encode(r)
		}
	}
	write(s.chainFile, chain.String())
	write(s.drawsFile, draws.String())
	return s
}

// BenchmarkReplay is a start with a chain file.
func BenchmarkReplay(b *testing.B) {
	for _, blocks := range []int{10_000, 100_000, 1_000_000} {
		s := writeFiles(b, blocks, 0)
		side(b, fmt.Sprintf("blocks=%d/side=ours", blocks), blocks, "block", func() {
			has(b, restarted(b.Context(), s), "restored")
		})
		side(b, fmt.Sprintf("blocks=%d/side=floor", blocks), blocks, "block", func() { eachLine(s.chainFile, hashBlock) })
	}
}

// BenchmarkVerifyDraws is verify of 200 draws among 1,000 proposals.
func BenchmarkVerifyDraws(b *testing.B) {
	s := writeFiles(b, 201, 1000)
	side(b, "side=ours", 200*1000, "proposal", func() {
		has(b, verified(s), "ok: 200 draws\n")
	})
	side(b, "side=floor", 200*1000, "proposal", func() {
		eachLine(s.chainFile, hashBlock)
		eachLine(s.drawsFile, func(r record) { hash(strings.Join(r.Lines, "\n") + "\n") })
	})
}

// BenchmarkRoundEnd is from the end of a round of 10,000 proposals to the first announcement; side=floor hashes the lines of its
// draw once and syncs one file.
func BenchmarkRoundEnd(b *testing.B) {
	s := onDisk(b)
	s.roundLength = time.Hour
	b.Run("side=ours", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			h := open(b, s, nil)
			h.visits(10_000, "100\n72\n", "proposed")
			g, reset := h.guest()
			g.says("", "Enter token balance:")
			b.StartTimer()
			h.stop() // ends the round
			g.says("", "winning validator: ")
			b.StopTimer()
			g.says("", "shutting down\n")
			reset()
			h.shut()
			b.StartTimer()
		}
	})
	b.Run("side=floor", func(b *testing.B) {
		lines := []byte(strings.Repeat(hash("")+" 100 72\n", 10_000))
		f := must(os.Create(s.chainFile))
		defer f.Close()
		for b.Loop() {
			sha256.Sum256(lines)
			must(f.WriteAt([]byte("x"), 0))
			must(0, f.Sync())
		}
	})
}
