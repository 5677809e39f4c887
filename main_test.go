package main

import (
	"bytes"
	"cmp"
	"context"
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
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"proofofstake/internal/console"
	"proofofstake/internal/draw"
	"proofofstake/internal/linefile"
	"proofofstake/internal/settings"
)

// These tests check what players type and what they get, most of them in virtual time (see testing/synctest). Only
// TestGame, TestPaste and TestSlashing repeat the exact wording of messages. All others look for the texts below. What
// needs the built binary and the real nc is in internal/e2e.

const (
	validBPM  = 50   // so are the next nine
	notABPM   = "no" // gets a validator slashed
	isSlashed = "slashed: "
	isError   = "error: "     // in the results of verified and restarted
	isLogged  = "log: "       // in the result of restarted
	restored  = "\nrestored " // on the console
)

var (
	// joined matches the answer to a stake: address, stake, seal, what follows.
	joined = regexp.MustCompile(`validator ([0-9a-f]{64}) with (\d+) .*\n.* seal: ([0-9a-f]{64})\n((?s:.*))$`)
	// proposed matches the answer to a BPM that counts: block, BPM, first ticket, and last ticket if there are several.
	proposed = regexp.MustCompile(`proposed block (\d+) with \w+ (-?\d+)\D+(\d+)(?: to (\d+))?`)
	// won matches an announcement: winner, block, BPM, tickets, secret, what only the winner gets, next seal.
	won = regexp.MustCompile(`\nwinning validator: (\S+)\nblock (\d+), \w+ (-?\d+): (.+)\ndraw \d+ secret: (\S+)\n` +
		`(you .*\n)?draw \d+ seal: (\S+)\n`)
	// broadcast matches a broadcast of the chain.
	broadcast = regexp.MustCompile(`(?m)^\[.*\]$`)
)

func TestMain(m *testing.M) {
	time.Local = time.FixedZone("elsewhere", 5*60*60) // timestamps must be in UTC everywhere
	m.Run()
}

// ---- Helpers ----

// must returns v, and panics if there is an error that the test does not expect.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// has fails the test if text lacks one of the parts.
func has(t testing.TB, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("got %q, want %q in it", text, part)
		}
	}
}

// find returns the submatches of a pattern in text. If there is no match, the test fails, and they are empty.
func find(t testing.TB, pattern *regexp.Regexp, text string) []string {
	t.Helper()
	m := pattern.FindStringSubmatch(text)
	if m == nil {
		t.Errorf("got %q, want a match of %s", text, pattern)
		return make([]string, 1+pattern.NumSubexp())
	}
	return m
}

// output collects what is written to it. Its methods may be called from several goroutines.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

// next returns what was written since the last call, in virtual time. It first waits until everything has happened that
// happens now.
func (o *output) next() string {
	synctest.Wait()
	o.mu.Lock()
	defer o.mu.Unlock()
	defer o.text.Reset()
	return o.text.String()
}

// inMemory returns the default settings, but without files and broadcasts.
func inMemory() settings.Settings {
	return settings.Settings{
		Round: 30 * time.Second, Broadcast: 10000 * time.Hour, BroadcastBlocks: 10,
		MaxStake: math.MaxInt64, MaxClients: 10000, MaxPerAddress: 1000,
	}
}

// onDisk returns inMemory with files in a directory of the test.
func onDisk(t testing.TB) settings.Settings {
	s, dir := inMemory(), t.TempDir()
	s.ChainFile, s.DrawsFile = filepath.Join(dir, "chain.jsonl"), filepath.Join(dir, "draws.jsonl")
	return s
}

// conn is one end of a connection that consists of two net.Pipes. As in TCP, each direction can be closed alone.
type conn struct {
	net.Conn // for reading
	out      net.Conn
	remote   net.Addr
}

func (c conn) Write(p []byte) (int, error)        { return c.out.Write(p) }
func (c conn) SetWriteDeadline(t time.Time) error { return c.out.SetWriteDeadline(t) }
func (c conn) CloseWrite() error                  { return c.out.Close() }
func (c conn) Close() error                       { return errors.Join(c.Conn.Close(), c.out.Close()) }
func (c conn) RemoteAddr() net.Addr               { return c.remote }

// testNetwork is a network under test, and its listener, which accepts what dial connects.
type testNetwork struct {
	*network
	net.Listener   // nil
	t              testing.TB
	ctx            context.Context    // done when the network is to stop
	interrupt      context.CancelFunc // stops the network, as Ctrl-C does
	served         chan struct{}      // closed when the server has stopped
	dialed         chan conn
	stdout, stderr output            // the console and the log
	known          map[string]string // the values of <name> in dialogues
}

func (n *testNetwork) SetDeadline(time.Time) error { return nil }
func (n *testNetwork) Close() error                { return nil }
func (n *testNetwork) Accept() (net.Conn, error) {
	select {
	case c := <-n.dialed:
		return c, nil
	case <-n.ctx.Done():
		return nil, net.ErrClosed
	}
}

// start starts a network.
func start(t testing.TB, s settings.Settings) *testNetwork {
	n := &testNetwork{t: t, served: make(chan struct{}), dialed: make(chan conn, 1000), known: map[string]string{}}
	n.ctx, n.interrupt = context.WithCancel(context.Background())
	n.network = must(newNetwork(n.ctx, s, &n.stdout, log.New(&n.stderr, "", 0)))
	go func() {
		n.serve(n.ctx, n)
		close(n.served)
	}()
	return n
}

// dial connects a client that has an IP address. It returns both ends of the connection.
func (n *testNetwork) dial(ip string) (client, server conn) {
	toServer, atServer := net.Pipe()
	atClient, toClient := net.Pipe()
	server = conn{Conn: atServer, out: toClient, remote: &net.TCPAddr{IP: net.ParseIP(ip)}}
	n.dialed <- server
	return conn{Conn: atClient, out: toServer}, server
}

// inVirtualTime plays on a new network in virtual time. It fails if a goroutine is left at the end.
func inVirtualTime(t *testing.T, s settings.Settings, play func(n *testNetwork)) {
	t.Helper()
	watchdog := time.AfterFunc(5*time.Minute, func() { panic(t.Name() + ": virtual time stands still, or never ends") })
	defer watchdog.Stop()
	synctest.Test(t, func(t *testing.T) {
		n := start(t, s)
		defer func() {
			n.interrupt()
			<-n.served
			time.Sleep(time.Minute) // until clients that do not read are disconnected
		}()
		play(n)
	})
}

// match fails the test if got is not want, in which <name> stands for a value, the same one in all texts.
func (n *testNetwork) match(got, want string) {
	n.t.Helper()
	var names []string
	pattern := regexp.MustCompile(`<[a-z]+\d*>`).ReplaceAllStringFunc(regexp.QuoteMeta(want), func(name string) string {
		if value, ok := n.known[name]; ok {
			return regexp.QuoteMeta(value)
		}
		names = append(names, name)
		return `([\w.:-]+)`
	})
	m := regexp.MustCompile("^" + pattern + "$").FindStringSubmatch(got)
	if m == nil {
		n.t.Errorf("got\n%s\n--- want\n%s\n--- with %v", got, want, n.known)
		return
	}
	for i, name := range names {
		n.known[name] = m[i+1]
	}
}

// wantConsole checks what the console has shown since the last call. It has 80 columns, except for huge numbers and the
// genesis block.
func (n *testNetwork) wantConsole(want string) {
	n.t.Helper()
	text := n.stdout.next()
	wide := regexp.MustCompile(`(?m)^.{81,}$`).FindString(text)
	if wide != "" && !regexp.MustCompile(`\(len=64\)|\d{19}`).MatchString(wide) {
		n.t.Errorf("on the console, this line is too wide: %s", wide)
	}
	n.match(text, want)
}

// testClient is a client in virtual time.
type testClient struct {
	output       // what it has received
	n            *testNetwork
	conn, server conn   // its end of the connection, and the server's
	name         string // of its validator, as in <name>, if it has joined by the method join
	address      string // of that validator
	seal         string // that it was sent then
	prompt       string // the one that it is at
	closed       chan struct{}
	typing       chan struct{} // holds a value while a goroutine writes to conn
}

// connect connects a client that is exempt from the limits per address.
func (n *testNetwork) connect() *testClient { return n.connectFrom("127.0.0.1") }

func (n *testNetwork) connectFrom(ip string) *testClient {
	synctest.Wait() // until everything has happened that happens before
	c := &testClient{n: n, prompt: stakePrompt, closed: make(chan struct{}), typing: make(chan struct{}, 1)}
	c.conn, c.server = n.dial(ip)
	go func() {
		io.Copy(c, c.conn)
		close(c.closed)
	}()
	return c
}

// join connects a client that stakes tokens. From then on, <name> stands for the address of its validator.
func (n *testNetwork) join(name string, tokens int64) *testClient {
	n.t.Helper()
	c := n.connect()
	m := find(n.t, joined, c.send(fmt.Sprintln(tokens)))
	c.name, c.address, c.seal, c.prompt, n.known["<"+name+">"] = name, m[1], m[3], bpmPrompt, m[1]
	return c
}

// types sends text after all earlier text. It waits for a channel, because a mutex, as in net.Pipe, stops virtual time.
func (c *testClient) types(text string) {
	go func() {
		c.typing <- struct{}{}
		io.WriteString(c.conn, text)
		<-c.typing
	}()
}

// send sends text and returns what the client receives for it before any time passes.
func (c *testClient) send(text string) string {
	c.types(text)
	return c.next()
}

// propose proposes a block, and fails the test if the proposal does not count. It returns its line in the draw lines.
func (c *testClient) propose(bpm int) string {
	c.n.t.Helper()
	m := find(c.n.t, proposed, c.send(fmt.Sprintln(bpm)))
	var first, last big.Int
	fmt.Sscan(m[3]+" "+cmp.Or(m[4], m[3]), &first, &last)
	return fmt.Sprintf("%s %d %s", c.address, first.Add(big.NewInt(1), last.Sub(&last, &first)), m[2])
}

// dialogue checks a dialogue as the player sees it: «72» is a line that is typed, «100⏎72» are two in one packet,
// «30s later» lets time pass, «closed» is the end of the connection.
func (c *testClient) dialogue(script string) {
	c.n.t.Helper()
	for rest := script; ; {
		received, typed, more := strings.Cut(rest, "«")
		c.n.match(c.next(), received)
		if !more {
			return
		}
		typed, rest, _ = strings.Cut(typed, "»")
		if later, ok := strings.CutSuffix(typed, " later"); ok {
			time.Sleep(must(time.ParseDuration(later)))
		} else if typed == "closed" {
			c.wantClosed()
		} else {
			c.types(strings.ReplaceAll(typed, "⏎", "\n") + "\n")
			rest = strings.TrimPrefix(rest, "\n") // the terminal's own echo
		}
	}
}

// wantWinner checks that the client has received the announcement of a block, its prompt, and then the text last. It
// returns the announcement's submatches.
func (c *testClient) wantWinner(block int, winner, last string) []string {
	c.n.t.Helper()
	text := c.next()
	m := find(c.n.t, won, text)
	if text != m[0]+c.prompt+last || m[1] != c.n.known["<"+winner+">"] || m[2] != strconv.Itoa(block) ||
		(m[6] != "") != (c.name == winner) {
		c.n.t.Errorf("%s received %q, want block %d by %s of %v", c.name, text, block, winner, c.n.known)
	}
	return m
}

// wantClosed fails the test if the server does not close the connection within the second that the last message may
// take, or sends something else before.
func (c *testClient) wantClosed() {
	c.n.t.Helper()
	c.dialogue("«1s later»")
	select {
	case <-c.closed:
	default:
		c.n.t.Error("the connection is still open")
	}
}

// endInput closes the client's side of the connection.
func (c *testClient) endInput() {
	c.conn.CloseWrite()
	c.prompt = noPrompt
}

// disconnect closes the connection, as when a window is closed. After reset, the server can neither read nor write.
func (c *testClient) disconnect() { c.conn.Close() }
func (c *testClient) reset()      { c.server.Close() }

// wantDraw checks the draw that has just been announced to the client: seal was published before it, and lines are the
// draw lines of the proposals. It returns the address of the winner, and the next seal.
func (c *testClient) wantDraw(seal string, lines ...string) (winner, nextSeal string) {
	c.n.t.Helper()
	m := find(c.n.t, won, c.next())
	shown := c.send("draw\n")
	_, text, _ := strings.Cut(strings.TrimSuffix(shown, "\n"+c.prompt), " check it:\n")
	d, err := draw.Parse(strings.Split(text, "\n"))
	if err != nil {
		c.n.t.Fatalf("draw shows %q: %v", shown, err)
	}
	o := d.Outcome()
	has(c.n.t, shown, m[2]+": "+o.String()+"; ")
	if d.Seal() != seal || d.Secret() != m[5] || !slices.Equal(strings.Split(text, "\n")[3:], lines) ||
		m[1] != d.Entries[o.Winner].Name || m[3] != d.Entries[o.Winner].Note || m[4] != o.String() {
		c.n.t.Errorf("got %q, but with seal %s and %q, the draw is %q", m[0], seal, lines, shown)
	}
	return m[1], m[7]
}

// ---- Dialogues ----

// TestGame plays a game of a winner, another validator and a spectator. It checks what they and the console get.
func TestGame(t *testing.T) {
	s := inMemory()
	s.Broadcast = 59 * time.Second
	inVirtualTime(t, s, func(n *testNetwork) {
		n.wantConsole(`(main.Block) {
 Index: (int) 0,
 Timestamp: (string) (len=30) "2000-01-01T00:00:00.000000000Z",
 BPM: (int) 0,
 Hash: (string) (len=64) "9fa00adf97e0d81be3e68f14ea88337abd6eaddb6c7016a873733aa5e48ea371",
 PrevHash: (string) "",
 Validator: (string) ""
}
`)
		alice, bob, eve := n.connect(), n.connect(), n.connect()
		eve.dialogue("Enter token balance:")
		alice.dialogue(`Enter token balance:«100»

you are validator <alice> with 100 tokens staked
draw 1 seal: <seal1>
type your pulse to propose block 1; the winner is drawn in 30s

Enter a new BPM:«72»

you proposed block 1 with BPM 72: your tickets are 1 to 100; the winner is drawn in 30s

Enter a new BPM:«29.2s later»«73»

you already proposed block 1, with BPM 72; the next round opens in less than 1s

Enter a new BPM:`)
		n.wantConsole("validators: 1 (100 tokens staked)\n  <alice> 100\n" +
			"block 1: proposed; the winner is drawn in 30s\n")
		bob.dialogue(`Enter token balance:«1»

you are validator <bob> with 1 token staked
draw 1 seal: <seal1>
type your pulse to propose block 1; the winner is drawn in less than 1s

Enter a new BPM:«799ms later»«1ms later»
winning validator: <alice>
block 1, BPM 72: ticket <ticket1> of 100
draw 1 secret: <secret1>
draw 2 seal: <seal2>

Enter a new BPM:«68»

you proposed block 2 with BPM 68: your ticket is 1; the winner is drawn in 30s

Enter a new BPM:`)
		alice.dialogue(`
winning validator: <alice>
block 1, BPM 72: ticket <ticket1> of 100
draw 1 secret: <secret1>
you forged block 1
draw 2 seal: <seal2>

Enter a new BPM:`)
		eve.dialogue(`
winning validator: <alice>
block 1, BPM 72: ticket <ticket1> of 100
draw 1 secret: <secret1>
draw 2 seal: <seal2>
Enter token balance:«draw»

block 1: ticket <ticket1> of 100; hash these lines to check it:
<secret1>
9fa00adf97e0d81be3e68f14ea88337abd6eaddb6c7016a873733aa5e48ea371
none
<alice> 100 72
Enter token balance:`)
		text := n.stdout.next()
		n.match(text[strings.Index(text, "block 1"):], `block 1: BPM 72, ticket <ticket1> of 100
  forged by <alice>
  who staked 100 of 100 tokens (100.0%); 1 proposal
draw 2 seal: <seal2>
block 2: proposed; the winner is drawn in 30s
`)
		has(t, text, "validators: 2 (101 tokens staked)\n")
		eve.dialogue(`«28.999s later»«1ms later»
[{"Index":0,"Timestamp":"2000-01-01T00:00:00.000000000Z","BPM":0,` +
			`"Hash":"9fa00adf97e0d81be3e68f14ea88337abd6eaddb6c7016a873733aa5e48ea371","PrevHash":"","Validator":""},` +
			`{"Index":1,"Timestamp":"2000-01-01T00:00:30.000000000Z","BPM":72,"Hash":"<hash>",` +
			`"PrevHash":"9fa00adf97e0d81be3e68f14ea88337abd6eaddb6c7016a873733aa5e48ea371","Validator":"<alice>"}]
Enter token balance:`)
	})
}

// TestPaste sends several lines in one packet, as a paste or a pipe does. Each is answered. Commands cost nothing, and
// may be in any case.
func TestPaste(t *testing.T) {
	s := inMemory()
	s.MaxStake = 1000
	inVirtualTime(t, s, func(n *testNetwork) {
		n.connect().dialogue(`Enter token balance:«⏎x⏎0⏎draw⏎100⏎?⏎72⏎73⏎⏎quit»

Your stake is a whole number, from 1 to 1000. The tokens are play money.
The more you stake, the better your chance to forge (add) the next block.
  draw   show the last draw, so that you can check it
  quit   leave
Enter token balance:
"x" is not a stake: enter a whole number, such as 100
Enter token balance:
"0" is not a stake: the minimum is 1; one more try
Enter token balance:
no block has been drawn yet
Enter token balance:
you are validator <alice> with 100 tokens staked
draw 1 seal: <seal1>
type your pulse to propose block 1; the winner is drawn in 30s

Enter a new BPM:
Type your pulse, a whole number such as 72. It proposes the next block.
You have one proposal per round, and one ticket per token you staked.
When the round ends, one ticket is drawn, and its owner forges the block.
  Enter  the round so far
  draw   show the last draw, so that you can check it
  quit   leave; your proposal stands
Anything else gets you slashed: you lose your stake and your proposal.

Enter a new BPM:
you proposed block 1 with BPM 72: your tickets are 1 to 100; the winner is drawn in 30s

Enter a new BPM:
you already proposed block 1, with BPM 72; the next round opens in 30s

Enter a new BPM:
block 1: 1 proposal, 100 tokens, 100 of them yours (100.0%); the winner is drawn in 30s

Enter a new BPM:
goodbye
«closed»`)
		// The proposal of a validator who has left stands.
		n.connect().dialogue(`Enter token balance:«1000⏎⏎70⏎»

you are validator <bob> with 1000 tokens staked
draw 1 seal: <seal1>
type your pulse to propose block 1; the winner is drawn in 29s

Enter a new BPM:
block 1: 1 proposal, 100 tokens; the winner is drawn in 29s

Enter a new BPM:
you proposed block 1 with BPM 70: your tickets are 101 to 1100; the winner is drawn in 29s

Enter a new BPM:
block 1: 2 proposals, 1100 tokens, 1000 of them yours (90.9%); the winner is drawn in 29s

Enter a new BPM:`)
		n.connect().dialogue(`Enter token balance:«-5⏎1001⏎no⏎100»

"-5" is not a stake: the minimum is 1
Enter token balance:
"1001" is not a stake: the maximum is 1000; one more try
Enter token balance:
"no" is not a stake: enter a whole number, such as 100
too many tries, goodbye
«closed»`)
		n.connect().dialogue("Enter token balance:«Exit»\n\ngoodbye\n«closed»")
		n.connect().dialogue("Enter token balance:« QUIT »\n\ngoodbye\n«closed»")
	})
}

// TestSlashing slashes a validator, whose ticket is then drawn: the redraw is among the tickets of the others. The huge
// stake makes sure of that.
func TestSlashing(t *testing.T) {
	inVirtualTime(t, inMemory(), func(n *testNetwork) {
		mallory, alice := n.join("mallory", math.MaxInt64), n.join("alice", 1)
		mallory.send("70\n")
		alice.send("71\n")
		time.Sleep(28 * time.Second)
		n.stdout.next()
		mallory.dialogue(`«no»

slashed: "no" is not a BPM (a whole number, 0 or more); 9223372036854775807 tokens forfeited
to play again, connect again
«closed»`)
		alice.dialogue(`«500ms later»«»

block 1: 1 proposal, 1 token, 1 of them yours (100.0%); the winner is drawn in less than 1s

Enter a new BPM:«500ms later»
winning validator: <alice>
block 1, BPM 71: ticket <ticket> of 9223372036854775808 was slashed; redraw: ticket 1 of 1
draw 1 secret: <secret>
you forged block 1
draw 2 seal: <seal2>

Enter a new BPM:«draw»

block 1: ticket <ticket> of 9223372036854775808 was slashed; redraw: ticket 1 of 1; hash these lines to check it:
<secret>
9fa00adf97e0d81be3e68f14ea88337abd6eaddb6c7016a873733aa5e48ea371
none
<mallory> 9223372036854775807 slashed
<alice> 1 71

Enter a new BPM:`)
		n.wantConsole(`validators: 1 (1 token staked)
  <alice> 1
  slashed: <mallory>
    lost 9223372036854775807 tokens for typing "no"
block 1: BPM 71, ticket <ticket> of 9223372036854775808 was slashed; redraw: ticket 1 of 1
  forged by <alice>
  who staked 1 of 1 token (100.0%); 1 proposal
draw 2 seal: <seal2>
`)
	})
}

// ---- What players type ----

// TestInput types the same lines at both prompts: numbers, and what is neither a stake nor a BPM.
func TestInput(t *testing.T) {
	const notWhole, tooSmall, tooLarge, tooLong = "whole number", "is 1", "is 9223372036854775807", "too long"
	zeros := strings.Repeat("0", 1023)
	inVirtualTime(t, inMemory(), func(n *testNetwork) {
		for typed, number := range map[string]string{
			"1": "1", fmt.Sprint(math.MaxInt): fmt.Sprint(math.MaxInt), "  12\t": "12", "7\r": "7", "007": "7",
			zeros + "6\r":              "6",
			"\xff\xfd\x068\xff\xfb\n9": "89",
		} {
			c := n.connect()
			stake, bpm := find(t, joined, c.send(typed+"\n"))[2], find(t, proposed, c.send(typed+"\n"))[2]
			if c.disconnect(); stake != number || bpm != number {
				t.Errorf("%q stakes %s and proposes BPM %s, want %s", typed, stake, bpm, number)
			}
		}
		find(t, proposed, n.join("zero", 1).send("0\n"))
		time.Sleep(n.Round)
		for typed, why := range map[string]string{
			"-1": tooSmall, "-99999999999999999999": tooSmall, "9223372036854775808": tooLarge,
			strings.Repeat("9", 1024): tooLarge, notABPM: notWhole, "abc": notWhole, "1.5": notWhole, "1e3": notWhole,
			"1 000": notWhole, "0x10": notWhole, "١": notWhole, "quit now": notWhole, "GET / HTTP/1.1": notWhole,
			"\x00": notWhole, "a\tb": notWhole, "\xfa": notWhole, "5\xfa": notWhole,
			strings.Repeat("ä", 50): notWhole, zeros + "11": tooLong, "quit" + zeros: tooLong,
		} {
			quoted := console.Quote(typed, 40)
			c, mallory := n.connect(), n.join("mallory", 9)
			has(t, c.send(typed+"\n"), "\n"+quoted+" is not a stake: ", why, "\n"+stakePrompt)
			c.disconnect()
			mallory.propose(validBPM)
			has(t, mallory.send(typed+"\n"), isSlashed+quoted+" is not ", "9 tokens")
			mallory.wantClosed()
		}
		for typed, rule := range map[string]string{
			fmt.Sprint(uint64(math.MaxInt) + 1): fmt.Sprint(" from 0 to ", math.MaxInt),
			"-1":                                ", 0 or more", "٧٢": ", 0 or more, in the digits 0 to 9",
		} {
			has(t, n.join("mallory", 9).send(typed+"\n"), " is not a BPM (a whole number"+rule+"); 9 tokens")
		}
		alice := n.join("alice", 5)
		has(t, alice.send("\n"), " 0 proposals, 0 tokens")
		has(t, alice.send("help\n"), "Type your pulse", bpmPrompt)
		n.stdout.next()
		time.Sleep(n.Round)
		if text := n.stdout.next(); strings.Contains(text, "left") || strings.Contains(text, "forged") {
			t.Errorf("on the console: %s", text)
		}
	})
}

// TestLimits fills rounds with proposals, and then the server with connections, in all or from one address. Proposals
// count even if their clients have left.
func TestLimits(t *testing.T) {
	const ipv4, ipv6, sameNet, loopback = "10.0.0.7", "2001:db8::1", "2001:db8::2", "127.0.0.1"
	const full, addressFull = "the server is full; try", "too many connections from your address; try"
	for _, test := range []struct {
		maxClients, maxPerAddress int
		from                      []string
		refused                   []int  // proposals, by index in from
		third                     string // what a third client from the IPv4 address gets
	}{
		{6, 2, []string{ipv4, ipv4, ipv4, loopback, loopback, loopback, ipv6, sameNet}, []int{2, 7}, addressFull},
		{0, 2, []string{ipv6, sameNet, loopback, ipv6, loopback, loopback}, []int{3}, addressFull},
		{0, 0, []string{ipv4, ipv4, ipv4}, nil, stakePrompt},
		{2, 0, []string{ipv4, ipv4, ipv4}, []int{2}, full},
	} {
		s := inMemory()
		s.MaxClients, s.MaxPerAddress = test.maxClients, test.maxPerAddress
		inVirtualTime(t, s, func(n *testNetwork) {
			for _, lastLine := range []string{"quit\n", notABPM + "\n", ""} {
				for i, from := range test.from {
					c := n.connectFrom(from)
					c.send("1\n")
					answer := c.send(fmt.Sprintln(validBPM))
					if refused := slices.Contains(test.refused, i); proposed.MatchString(answer) == refused ||
						strings.Contains(answer, "this round is full") != refused {
						t.Errorf("with limits %+v, proposal %d gets %q", test, i, answer)
					}
					c.send(lastLine)
					c.reset()
				}
				time.Sleep(n.Round) // the next round is empty
			}
			first, second, third := n.connectFrom(ipv4), n.connectFrom(ipv4), n.connectFrom(ipv4)
			has(t, first.next()+second.next(), stakePrompt+stakePrompt)
			has(t, third.next(), test.third)
			first.reset()
			has(t, n.connectFrom(ipv4).next(), stakePrompt)
		})
	}
}

// ---- Leaving ----

// TestEndOfInput closes the client's side. A proposal stands, and its client stays connected until its round ends.
func TestEndOfInput(t *testing.T) {
	inVirtualTime(t, inMemory(), func(n *testNetwork) {
		alice, bob, carol, eve := n.join("alice", math.MaxInt64), n.join("bob", 10), n.join("carol", 20), n.connect()
		has(t, eve.next(), stakePrompt)
		alice.send(strconv.Itoa(validBPM)) // a last line without a newline counts
		alice.endInput()
		find(t, proposed, alice.next())
		carol.propose(validBPM)
		for _, c := range []*testClient{bob, eve} { // without a proposal, there is nothing to wait for
			c.endInput()
			c.wantClosed()
		}
		time.Sleep(28 * time.Second)
		alice.wantWinner(1, "alice", "")
		alice.wantClosed()
		carol.wantWinner(1, "alice", "")
		time.Sleep(5 * time.Second)
		n.stdout.next()
		carol.endInput() // its round is over
		carol.wantClosed()
		time.Sleep(5 * time.Second)
		has(t, n.stdout.next(), "validators: 0 ", "  left: "+carol.address+" 20\n")
	})
}

// TestVanishingClient makes a proposal. Then the client does not read any more, or its connection is reset. Nobody
// waits for it, and its proposal stands.
func TestVanishingClient(t *testing.T) {
	s := inMemory()
	s.Round, s.Broadcast = 270*time.Second, time.Minute
	for _, how := range []string{"stalled", "reset", "input ended, then reset"} {
		inVirtualTime(t, s, func(n *testNetwork) {
			alice, eve := n.join("alice", 100), n.connect()
			alice.propose(validBPM)
			time.Sleep(time.Second)
			if how == "input ended, then reset" {
				alice.endInput()
				synctest.Wait()
			}
			if how == "stalled" {
				alice.conn.SetReadDeadline(time.Now())
			} else {
				alice.reset()
			}
			time.Sleep(100 * time.Second) // the next broadcast finds that it is gone, or does not read
			has(t, n.stdout.next(), "validators: 0 ", "  left: "+alice.address+" 100\n")
			if log := n.stderr.next(); strings.Contains(log, "disconnected 1 client") != (how == "stalled") {
				t.Errorf("%s: the log says %q", how, log)
			}
			time.Sleep(168 * time.Second)
			eve.next()
			time.Sleep(time.Second)
			eve.wantWinner(1, "alice", "")
			has(t, n.stdout.next(), "forged by "+alice.address)
		})
	}
}

// TestShutdown checks that the open round is drawn and announced before every client gets its last message.
func TestShutdown(t *testing.T) {
	inVirtualTime(t, onDisk(t), func(n *testNetwork) {
		alice, bob, eve := n.join("alice", math.MaxInt64), n.join("bob", 1), n.connect()
		alice.propose(validBPM)
		bob.propose(validBPM)
		bob.endInput()
		eve.next()
		n.interrupt()
		alice.wantWinner(1, "alice", shutdownMessage)
		bob.wantWinner(1, "alice", "") // it leaves with its round
		eve.wantWinner(1, "alice", shutdownMessage)
		late, server := n.dial("127.0.0.1") // accepted a moment before the interrupt
		go n.handleConn(server, netip.Prefix{})
		converse(t, late, "", stakePrompt+shutdownMessage)
		late.Close()
		alice.send(fmt.Sprintln(validBPM))
		for _, c := range []*testClient{alice, bob, eve} {
			c.wantClosed()
		}
		has(t, verified(n.Settings), "\nok: 1 draw")
	})
}

// ---- Rounds ----

// TestDays plays for three days, while clients misbehave and leave. Rounds end by the clock. Neither memory nor the
// number of goroutines grows, and no secret repeats.
func TestDays(t *testing.T) {
	s, rounds := inMemory(), 3*24*60*2
	s.Broadcast = time.Minute
	inputs := []string{"", "5\n", "5\n50\n", "5\n50", "5\nno\n", "x\nx\nx\n", "5\n50\n51\n" + strings.Repeat("y", 2000)}
	inVirtualTime(t, s, func(n *testNetwork) {
		alice, secrets := n.join("alice", 1), make(map[string]bool, rounds)
		memory, goroutines, chain := int64(0), 0, []Block{}
		for round := range rounds {
			visitor := n.connect()
			visitor.send(inputs[round%len(inputs)])
			[]func(){visitor.endInput, visitor.disconnect, visitor.reset}[round%3]()
			alice.propose(validBPM)
			time.Sleep(n.Round)
			text := alice.next()
			secrets[strings.Clone(find(t, won, text)[5])] = true
			if m := broadcast.FindString(text); m != "" || round == rounds-1 {
				chain = parseChain(t, m)
			}
			if n.stdout.next(); round == rounds/10 {
				memory, goroutines = heap(), runtime.NumGoroutine()
			}
		}
		if m, g := heap(), runtime.NumGoroutine(); m > memory+1<<20 || g > goroutines+5 {
			t.Errorf("after %d rounds, %d bytes and %d goroutines, before %d and %d", rounds, m, g, memory, goroutines)
		}
		head := chain[len(chain)-1]
		at := time.Date(2000, 1, 1, 0, 0, 30*head.Index, 0, time.UTC).Format("2006-01-02T15:04:05.000000000Z")
		if head.Index < rounds-1 || head.Timestamp != at || len(chain) != n.BroadcastBlocks || len(secrets) != rounds {
			t.Errorf("after %d rounds, there are %d secrets, and the broadcast has %+v", rounds, len(secrets), chain)
		}
	})
}

// heap returns how many bytes of memory are in use.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // for what pools hold
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// displace puts a directory in the place of a file, and returns a function that restores the file.
func displace(name string) (restore func()) {
	must(0, errors.Join(os.Rename(name, name+".away"), os.Mkdir(name, 0o755)))
	return func() { must(0, errors.Join(os.Remove(name), os.Rename(name+".away", name))) }
}

// TestUnsavedBlock draws a block that cannot be saved. The draw is final. Until the block is saved, nobody hears of it,
// and only proposals wait. Then the network carries on by the clock. If it is stopped, it waits for the block, but not
// forever.
func TestUnsavedBlock(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("on Windows, nobody can move a file that the server has open")
	}
	for _, test := range [][2]string{{"chain", ""}, {"draws", ""}, {"chain", "stop"}, {"chain", "stop unsaved"}} {
		inVirtualTime(t, onDisk(t), func(n *testNetwork) {
			alice, bob, eve := n.join("alice", 100), n.join("bob", 25), n.connect()
			lines, bpm := []string{alice.propose(validBPM), bob.propose(validBPM + 1)}, fmt.Sprintln(validBPM)
			eve.next()
			time.Sleep(29 * time.Second)
			name := map[string]string{"chain": n.ChainFile, "draws": n.DrawsFile}[test[0]]
			restore := displace(name)
			time.Sleep(time.Second) // the round ends
			has(t, eve.send("draw\n"), stakePrompt)
			dave := n.connect()
			if m := find(t, joined, dave.send("1\n")); m[3] != alice.seal || m[4] != bpmPrompt {
				t.Errorf("no round is open, but a validator who joins gets %q", m[0])
			}
			carol := n.join("carol", 10)
			time.Sleep(500 * time.Millisecond)
			n.match(carol.send(bpm), "")
			if test[1] != "" {
				if n.interrupt(); test[1] == "stop" {
					restore()
					time.Sleep(500 * time.Millisecond)
					find(t, won, carol.next()+eve.next())
					return
				}
				carol.dialogue("«1999ms later»«1ms later»" + shutdownMessage)
				has(t, n.stderr.next(), "block 1 was not announced")
				return
			}
			carol.dialogue("«499ms later»")
			time.Sleep(time.Millisecond)
			for _, text := range []string{carol.next(), carol.send(bpm), carol.send("\n")} {
				has(t, text, "block 1 ", "not saved yet", bpmPrompt)
			}
			has(t, bob.send(notABPM+"\n"), isSlashed) // too late to void its proposal
			has(t, n.stderr.next(), "cannot save block 1: ", name, "saving block 1 takes more than a second; ")
			eve.dialogue("«60500ms later»")
			restore()
			time.Sleep(500 * time.Millisecond)
			eve.wantDraw(alice.seal, lines...)
			has(t, n.stdout.next(), "; 2 proposals\n")
			alice.disconnect()
			carol.next()
			carol.propose(validBPM)
			carol.dialogue("«29s later»")
			restore = displace(name)
			carol.dialogue("«3500ms later»") // the round ends a second after its start
			restore()
			time.Sleep(500 * time.Millisecond)
			carol.wantWinner(2, "carol", "")
			carol.propose(validBPM)
			carol.dialogue("«26999ms later»") // the rest of the round
			time.Sleep(time.Millisecond)
			carol.wantWinner(3, "carol", "")
		})
	}
}

// converse sends text and returns what a client receives up to the message that contains until. If that does not come
// within a minute, the test fails, and the connection is closed, so that nothing waits for it any longer.
func converse(t testing.TB, client net.Conn, text, until string) (received string) {
	go io.WriteString(client, text)
	client.SetReadDeadline(time.Now().Add(time.Minute))
	for buf := make([]byte, 4096); !strings.Contains(received, until); {
		n, err := client.Read(buf)
		if received += string(buf[:n]); err != nil {
			t.Errorf("waiting for %q: %v after %q", until, err, received)
			client.Close()
			return received
		}
	}
	return received
}

// visit connects clients. Each stakes a token and makes a proposal. In the end, all of them are reset.
func (n *testNetwork) visit(clients int) {
	servers := make([]conn, clients)
	for i := range servers {
		var client conn
		client, servers[i] = n.dial("127.0.0.1")
		converse(n.t, client, fmt.Sprintf("1\n%d\n", validBPM), "proposed")
	}
	for _, server := range servers {
		server.Close()
	}
}

// TestManyProposals makes 20,000 proposals in one round, by 1,000 clients at a time. (The tutorial's program stops
// working at 200 to 400.) Each proposal takes little memory when its client has left.
func TestManyProposals(t *testing.T) {
	s := inMemory()
	s.Round, s.MaxClients = time.Hour, 0
	inVirtualTime(t, s, func(n *testNetwork) {
		var memory []int64
		for range 21 {
			n.visit(1000)
			time.Sleep(2 * time.Minute) // until the clients' timers have expired
			memory = append(memory, heap())
		}
		if memory[20] > memory[0]+300*20_000 {
			t.Errorf("20,000 proposals take %d bytes", memory[20]-memory[0])
		}
		c := n.connect()
		time.Sleep(n.Round)
		has(t, c.send("draw\n"), " of 21000; its 21003 lines are too many to show, see the draws file\n"+stakePrompt)
	})
}

// ---- The draw ----

// TestWinsFollowStakes plays rounds of validators who propose in any order, with and without a newcomer, who may be
// slashed. It checks each draw. In the end, each of them must have won as often as its tickets say. No address repeats.
func TestWinsFollowStakes(t *testing.T) {
	addresses := map[string]bool{}
	for stakes, rounds := range map[[4]int64]int{{1, 2, 7, 5}: 6000, {math.MaxInt64, 1, 1 << 62, math.MaxInt64}: 400} {
		inVirtualTime(t, inMemory(), func(n *testNetwork) {
			eve, mallory, clients := n.connect(), n.join("mallory", 100), [4]*testClient{}
			mallory.propose(validBPM)
			has(t, mallory.send(notABPM+"\n"), isSlashed)
			eve.next()
			eve.dialogue("«10m later»") // rounds that nobody can win pass in silence, and the next one keeps their seal
			for i := range clients {
				clients[i] = n.join(strconv.Itoa(i), stakes[i])
			}
			var wins, expected, variance [4]float64
			seal, winner := mallory.seal, ""
			addresses[mallory.address] = true // it has joined at the same moment with the same stake in both games
			for round := range rounds {
				lines, all := []string{}, 0.0
				var tickets [4]float64 // that can win, of each validator
				for _, who := range rand.Perm(3 + round%2) {
					line := clients[who].propose(validBPM + who)
					if who == 3 && round%4 == 1 {
						has(t, clients[3].send(notABPM+"\n"), isSlashed)
						line = line[:strings.LastIndex(line, " ")] + " slashed"
					} else {
						tickets[who], _ = strconv.ParseFloat(strings.Fields(line)[1], 64)
					}
					lines, all = append(lines, line), all+tickets[who]
				}
				time.Sleep(n.Round)
				winner, seal = eve.wantDraw(seal, lines...)
				for who, c := range clients {
					addresses[c.address] = true
					share := tickets[who] / all
					expected[who] += share
					variance[who] += share * (1 - share)
					if c.address == winner {
						wins[who]++
					}
				}
				if round%4 == 1 {
					clients[3] = n.join("newcomer", stakes[3])
				}
			}
			for who, want := range expected { // beyond 5 with a probability of 6e-7
				if z := (wins[who] - want) / math.Sqrt(variance[who]+1); math.Abs(z) > 5 {
					t.Errorf("of the stakes %d, %d wins %v times, want about %.1f", stakes, stakes[who], wins[who], want)
				}
			}
		})
	}
	if want := 5 + 5 + 6400/4; len(addresses) != want {
		t.Errorf("there are %d different addresses, want %d", len(addresses), want)
	}
}

// ---- Files ----

// playedFiles returns files after some rounds. In each, three validators with huge stakes proposed, and one of them was
// slashed. With small stakes, a changed line often gives the same ticket.
func playedFiles(t *testing.T, rounds int) settings.Settings {
	s := onDisk(t)
	inVirtualTime(t, s, func(n *testNetwork) {
		for range rounds {
			for i, lastLine := range []string{"", "", notABPM + "\n"} {
				c := n.join("new", math.MaxInt64-int64(i))
				c.propose(validBPM + i)
				c.send(lastLine)
				c.disconnect()
			}
			time.Sleep(n.Round)
		}
	})
	return s
}

// verified returns what verify prints about the files, or its error.
func verified(s settings.Settings) string {
	var out bytes.Buffer
	if err := verify(s.ChainFile, s.DrawsFile, &out, &out); err != nil {
		fmt.Fprint(&out, isError, err)
	}
	return out.String()
}

// restarted returns what a server prints and logs that starts with the files, or its error.
func restarted(s settings.Settings) string {
	var out bytes.Buffer
	n, err := newNetwork(context.Background(), s, &out, log.New(&out, isLogged, 0))
	if err != nil {
		return out.String() + isError + err.Error()
	}
	n.ledger.Close()
	return out.String()
}

func read(name string) string { return string(must(os.ReadFile(name))) }

func write(name string, text ...string) {
	must(0, os.WriteFile(name, []byte(strings.Join(text, "")), 0o644))
}

// parseChain parses blocks that follow each other, and checks them as README.md explains it.
func parseChain(t testing.TB, text string) (blocks []Block) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &blocks); err != nil {
		t.Fatalf("got %q, want a chain (%v)", text, err)
	}
	for i, b := range blocks {
		before, input := blocks[max(0, i-1)], fmt.Sprintln(b.Index, b.Timestamp, b.BPM, b.PrevHash, b.Validator)
		if b.Hash != calculateHash(strings.ReplaceAll(input, " ", "\n")) ||
			i > 0 && (b.Index != before.Index+1 || b.PrevHash != before.Hash || b.Timestamp < before.Timestamp) {
			t.Errorf("block %d is wrong: %+v, after %+v", b.Index, b, before)
		}
	}
	return blocks
}

// readChain reads the complete lines of a chain file.
func readChain(t testing.TB, name string) []Block {
	file := read(name)
	return parseChain(t, "["+strings.ReplaceAll(file[:max(0, strings.LastIndex(file, "\n"))], "\n", ",")+"]")
}

// TestRestart checks that a server carries on where the last one stopped, even if the last newline is gone.
func TestRestart(t *testing.T) {
	s := playedFiles(t, 2)
	s.Broadcast, s.BroadcastBlocks = 45*time.Second, 0
	for blocks := 3; blocks <= 4; blocks++ {
		chain := readChain(t, s.ChainFile)
		if blocks == 4 {
			write(s.ChainFile, strings.TrimSuffix(read(s.ChainFile), "\n"))
		}
		inVirtualTime(t, s, func(n *testNetwork) {
			text := n.stdout.next()
			has(t, text, chain[0].Hash, fmt.Sprint(restored, blocks, " blocks from ", s.ChainFile), chain[blocks-1].Hash)
			has(t, n.connect().send("draw\n"), fmt.Sprintf("block %d: ticket ", blocks-1), "\n"+chain[blocks-1].Validator)
			alice := n.join("alice", 5)
			alice.propose(validBPM)
			time.Sleep(n.Round)
			alice.wantWinner(blocks, "alice", "")
			time.Sleep(15 * time.Second)
			if sent := parseChain(t, find(t, broadcast, alice.next())[0]); !slices.Equal(sent[:len(sent)-1], chain) {
				t.Errorf("after %+v, the broadcast is %+v", chain, sent)
			}
			alice.send("quit\n")
		})
	}
	chain, draws := strings.SplitAfter(read(s.ChainFile), "\n"), strings.SplitAfter(read(s.DrawsFile), "\n")
	head := readChain(t, s.ChainFile)[4].Hash
	has(t, verified(s), "ok: 5 blocks, head "+head+"\nok: 4 draws; ", "restart (lines 3, 4)\n")
	write(s.DrawsFile, draws[0], strings.Replace(draws[1], " 50", " 51", 1))
	has(t, verified(s), isError+s.DrawsFile+": line 2: ")
	write(s.DrawsFile, draws...)
	write(s.ChainFile, chain[:4]...) // the last block was never announced
	has(t, verified(s), "\nok: 3 draws; 1 draw not announced (line 4); 2 ")
	write(s.ChainFile, chain[:3]...) // the last two announced blocks are lost
	has(t, verified(s), isError+s.DrawsFile+": line 4: ")
	// The clock was set back, but no block is older than the one before it.
	has(t, generateBlock(Block{Timestamp: "2100-01-01T00:00:00.000000000Z"}, 0, "").Timestamp, "2100")
}

// TestChainFileEveryByte truncates a chain file at every byte, as a crash may do, and an editor that removes the last
// newline. The complete blocks are still there after a restart. The rest is gone, and the log says so. Then it corrupts
// every byte. Verify and the start name its line, and the start leaves the file untouched.
func TestChainFileEveryByte(t *testing.T) {
	t.Parallel()
	s := playedFiles(t, 1)
	s.DrawsFile = ""
	file, genesis := read(s.ChainFile), readChain(t, s.ChainFile)[0]
	for at := range file {
		write(s.ChainFile, file[:at])
		result, left := restarted(s), read(s.ChainFile)
		complete := strings.LastIndex(file[:at+1], "\n") + 1 // with a block that lacks nothing but its newline
		partial := at > 0 && file[at-1] != '\n'
		if strings.Contains(result, isError) || !strings.HasPrefix(left, file[:complete]) ||
			complete > 0 && (len(left) != complete || !strings.Contains(result, genesis.Hash)) ||
			(complete > 0) != strings.Contains(result, restored) ||
			partial != strings.Contains(result, isLogged+s.ChainFile+": ") ||
			(partial && at < complete) != strings.Contains(result, "missing newline") {
			t.Fatalf("truncated to %d bytes: %s\nleaves %q\nof %q", at, result, left, file)
		}
		want := fmt.Sprintf("%s%s: line %d: ", isError, s.ChainFile, strings.Count(file[:at], "\n")+1)
		for _, bad := range []byte{file[at] ^ 0x01, file[at] ^ 0x20, file[at] ^ 0x80, '\n', '}'} {
			corrupted := file[:at] + string([]byte{bad}) + file[at+1:]
			write(s.ChainFile, corrupted)
			if bad != file[at] && at < len(file)-1 && !strings.HasPrefix(verified(s), want) {
				t.Fatalf("verify says %s of %q, want %s", verified(s), corrupted, want)
			}
		}
		if file[at] != '}' { // the last change; starting takes longer
			has(t, restarted(s), want)
			has(t, read(s.ChainFile), file[:at]+"}"+file[at+1:])
		}
	}
}

// TestChainFileErrors checks files of blocks that are not a chain, not valid, or not canonical JSON.
func TestChainFileErrors(t *testing.T) {
	s := playedFiles(t, 3)
	s.DrawsFile = ""
	lines, chain := strings.SplitAfter(read(s.ChainFile), "\n"), readChain(t, s.ChainFile)
	otherGame := strings.SplitAfter(read(playedFiles(t, 3).ChainFile), "\n")
	genesis, first, before := chain[0], chain[1], beforeGenesis()
	if !isBlockValid(first, genesis) || isBlockValid(first, first) {
		t.Error("block 1 must follow the genesis block, and only that")
	}
	line := func(b Block) string { // with a hash that fits
		b.Hash = calculateBlockHash(b)
		return string(linefile.Encode(b)) + "\n"
	}
	edited := first
	edited.BPM++
	tests := [][]string{ // the error, then the lines of the file
		{"line 3: wrong index", lines[0], lines[1], lines[3]}, {"line 2: wrong index", lines[0], lines[0]},
		{"line 1: wrong index", lines[1]}, {"line 3: wrong previous hash", lines[0], lines[1], otherGame[2]},
		{"line 2: wrong hash", lines[0], string(linefile.Encode(edited)) + "\n", lines[2]},
		{"line 3: wrong previous hash", lines[0], line(edited), lines[2]},
		{"line 2: ", lines[0], strings.Replace(lines[1], "\n", "\r\n", 1), lines[2]},
		{"line 2: ", lines[0], strings.Repeat("x", linefile.MaxLine+1)},
		{"line 1: wrong genesis block", line(generateBlock(before, validBPM, ""))},
		{"line 1: wrong genesis block", line(generateBlock(before, 0, "alice"))},
		{"line 2: wrong BPM", lines[0], line(generateBlock(genesis, math.MinInt, genesis.Hash))},
		{"line 2: wrong validator", lines[0], line(generateBlock(genesis, validBPM, ""))},
		// If a field could contain a newline, two blocks could have the same hash.
		{"line 2: wrong validator", lines[0], line(generateBlock(genesis, validBPM, genesis.Hash[1:]+"\n"))},
	}
	for _, edited.Timestamp = range []string{
		"1999-12-31T23:59:59.999999999Z",
		"zzz", "2026-11-23T15:38:49Z", "2026-11-23T15:38:49.1234+01:00", "2026-11-23T15:38:49,123456789Z",
		"2026-13-23T15:38:49.123456789Z", "2026-11-23T15:38:49.12345678Z", first.Timestamp + "\n7",
	} {
		tests = append(tests, []string{"line 2: wrong timestamp", lines[0], line(edited)})
	}
	for _, test := range tests {
		write(s.ChainFile, test[1:]...)
		has(t, verified(s), isError+s.ChainFile+": "+test[0])
		has(t, restarted(s), isError+s.ChainFile+": "+test[0])
	}
	write(s.ChainFile, lines[0], lines[1][:100])
	has(t, verified(s), s.ChainFile+": ignoring a partial last line\n", "ok: 1 block, ")
	write(s.ChainFile, "{")
	has(t, verified(s), isError+s.ChainFile+": no genesis block")
	genesis.Timestamp = "2099-12-31T23:59:59.999999999Z"
	write(s.ChainFile, line(genesis))
	has(t, restarted(s), isLogged+s.ChainFile+": block 0 is from "+genesis.Timestamp+"; check the clock\n")
	s.ChainFile += ".none"
	has(t, verified(s), isError)
}

// TestDrawsFile checks that verify names the line of an error. The last draw records may be missing, and the draw of
// the next block may have been made and never announced. The draws of another chain stop the start.
func TestDrawsFile(t *testing.T) {
	s := playedFiles(t, 3)
	lines, chain := strings.SplitAfter(read(s.DrawsFile), "\n"), strings.SplitAfter(read(s.ChainFile), "\n")
	want := func(result string, file ...string) {
		t.Helper()
		write(s.DrawsFile, file...)
		has(t, verified(s), result)
	}
	wrong := isError + s.DrawsFile + ": line "
	want("\nok: 3 draws\n", lines...)
	want("\nok: 2 draws; 1 block", lines[0], lines[1], lines[2][:100])
	has(t, verified(s), s.DrawsFile+": ignoring a partial last line\nok: 4 blocks, ")
	want("\nok: 0 draws; 3 blocks", lines[2][:100])
	want(wrong+"2: ", lines[0], strings.Replace(lines[1], " 50", " 51", 1), lines[2])
	want(wrong+"4: ", lines[0], lines[1], lines[2], lines[2])
	want(wrong+"2: it does not name the draw before it", lines[0], lines[2])
	write(s.ChainFile, chain[:2]...) // the last two announced blocks are lost
	want(wrong+"3: ", lines...)
	write(s.ChainFile, chain[:3]...) // the last one was never announced
	want("\nok: 2 draws; 1 draw not announced (line 3)\n", lines...)
	inVirtualTime(t, s, func(n *testNetwork) {
		has(t, n.connect().send("draw\n"), "\nblock 3 was drawn last, but is not in the chain\n")
		n.join("alice", 5).propose(validBPM)
		time.Sleep(s.Round)
	})
	has(t, verified(s), "\nok: 3 draws; 1 draw not announced (line 3); 1 new seal, as after a restart (line 4)\n")
	write(s.ChainFile, read(playedFiles(t, 3).ChainFile))
	has(t, restarted(s), isError+s.DrawsFile+": these are draws of another chain than "+s.ChainFile+"; ")
	must(0, os.Remove(s.ChainFile))
	has(t, restarted(s), isError+s.DrawsFile+": there are draws, but no chain in "+s.ChainFile+"; ")
	if _, err := os.Stat(s.ChainFile); err == nil {
		t.Error("the start, which was refused, leaves an empty chain file")
	}
}

// TestLoadedMemory checks that the memory of a server does not grow with the chain that it loads.
func TestLoadedMemory(t *testing.T) {
	memory := func(blocks int) int64 {
		s := writeFiles(t, blocks, 0)
		before := heap()
		defer must(newNetwork(t.Context(), s, io.Discard, log.Default())).ledger.Close()
		return heap() - before
	}
	if few, many := memory(1000), memory(20_000); many > few+512<<10 {
		t.Errorf("with 1,000 blocks a server holds %d bytes, with 20,000 %d", few, many)
	}
}

// ---- Fuzzing ----

// FuzzClient checks that whatever a client sends, in whatever pieces, the server answers each line or closes the
// connection, and other clients are not affected.
func FuzzClient(f *testing.F) {
	f.Add([]byte("100\n72\n"), uint8(3))
	f.Add([]byte("100\r\n\r\n72\r\n?\r\n73\nabc\n"), uint8(1))
	f.Add([]byte("\x00\xff\n\n0\n-1\ndraw\n"), uint8(200))
	f.Add(append(bytes.Repeat([]byte("x"), 5000), "\n5\n60"...), uint8(64))
	f.Fuzz(func(t *testing.T, data []byte, size uint8) {
		inVirtualTime(t, inMemory(), func(n *testNetwork) {
			c, other := n.connect(), n.join("other", 1)
			other.propose(validBPM)
			go func() {
				for piece := range slices.Chunk(data, int(size)+1) {
					c.conn.Write(piece)
				}
				c.conn.CloseWrite()
			}()
			time.Sleep(n.Round)
			find(t, won, other.next())
			time.Sleep(2*n.Round + time.Duration(len(data))*20*time.Millisecond) // the rate limit is per piece
			text, lines := c.next(), bytes.Count(data, []byte("\n"))
			c.wantClosed()
			prompts := strings.Count(text, stakePrompt) + strings.Count(text, bpmPrompt)
			left := strings.Contains(text, "goodbye") || strings.Contains(text, isSlashed)
			most := 500 * (lines + bytes.Count(data, []byte("\r")) + 10)
			if !left && prompts < lines-bytes.Count(data, []byte("\xff")) || len(text) > most {
				t.Errorf("%d lines, %d prompts, %d bytes: %q", lines, prompts, len(text), text)
			}
		})
	})
}

// FuzzReplay checks that no chain file makes the server or verify panic, that both accept the same files, and that all
// complete lines of these are a chain.
func FuzzReplay(f *testing.F) {
	genesis := string(linefile.Encode(generateBlock(beforeGenesis(), 0, "")))
	for _, file := range []string{genesis + "\n", genesis, genesis + "x", "\n\n"} {
		f.Add(file)
	}
	f.Fuzz(func(t *testing.T, file string) {
		s := onDisk(t)
		s.DrawsFile = ""
		write(s.ChainFile, file)
		valid, complete := !strings.Contains(verified(s), isError), file[:strings.LastIndexByte(file, '\n')+1]
		if valid {
			readChain(t, s.ChainFile)
		}
		starts, left := !strings.Contains(restarted(s), isError), read(s.ChainFile)
		if starts && (!valid && complete != "" || !strings.HasPrefix(left, complete)) || !starts && left != file {
			t.Errorf("the server starts with %q: %v, and leaves %q", file, starts, left)
		}
	})
}

// ---- Benchmarks ----

// measure runs a benchmark of something that handles count things. It also reports the time for each of them.
func measure(b *testing.B, name string, count int, thing string, run func()) {
	b.Run(name, func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			run()
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*count), "ns/"+thing)
	})
}

// BenchmarkDraw measures the draw of one round. side=tutorial is a pool with one entry per token, in which each
// proposer is looked up first. It is left out where it would take too long.
func BenchmarkDraw(b *testing.B) {
	for _, proposers := range []int{100, 10_000, 100_000} {
		for _, tokens := range []int64{1000, 10_000, math.MaxInt64} {
			name, d := fmt.Sprintf("proposers=%d/tokens=%d/side=", proposers, tokens), draw.New("", draw.None)
			for i := range proposers {
				d.Add(draw.Entry{Name: calculateHash(strconv.Itoa(i)), Tickets: tokens, Note: "70"})
			}
			measure(b, name+"ours", proposers, "proposer", func() { d.Outcome() })
			if proposers > 100 || tokens == math.MaxInt64 {
				continue
			}
			measure(b, name+"tutorial", proposers, "proposer", func() {
				var pool []string
				for _, e := range d.Entries {
					if !slices.Contains(pool, e.Name) {
						pool = append(pool, slices.Repeat([]string{e.Name}, int(tokens))...)
					}
				}
				has(b, pool[rand.IntN(len(pool))], "")
			})
		}
	}
}

// writeFiles writes a chain of blocks. If there are proposals, it also writes how each block was drawn from as many.
func writeFiles(t testing.TB, blocks, proposals int) settings.Settings {
	s, block := onDisk(t), generateBlock(beforeGenesis(), 0, "")
	d := draw.New(block.Hash, draw.None)
	chain, draws := linefile.Encode(block), []byte{}
	for i := 1; i < blocks; i++ {
		for j := range max(proposals, 1) {
			d.Add(draw.Entry{Name: calculateHash(block.Hash + strconv.Itoa(j)), Tickets: int64(100 + j), Note: "50"})
		}
		outcome := d.Outcome()
		block = generateBlock(block, 50, d.Entries[outcome.Winner].Name)
		next := draw.New(block.Hash, outcome.Hash)
		chain = append(append(chain, '\n'), linefile.Encode(block)...)
		if proposals > 0 {
			draws = append(append(draws, draw.NewRecord(i, block.Hash, outcome, next)...), '\n')
		}
		d = next
	}
	write(s.ChainFile, string(chain), "\n")
	write(s.DrawsFile, string(draws))
	return s
}

// decodeLines decodes and hashes each line of a file: the baseline of reading it.
func decodeLines[T any](name string, hash func(T) string) {
	for line := range strings.Lines(read(name)) {
		var v T
		must(0, json.Unmarshal([]byte(line), &v))
		hash(v)
	}
}

// BenchmarkReplay measures the start with a chain file.
func BenchmarkReplay(b *testing.B) {
	for _, blocks := range []int{10_000, 100_000, 1_000_000} {
		s, name := writeFiles(b, blocks, 0), fmt.Sprintf("blocks=%d/side=", blocks)
		measure(b, name+"ours", blocks, "block", func() { has(b, restarted(s), restored) })
		measure(b, name+"baseline", blocks, "block", func() { decodeLines(s.ChainFile, calculateBlockHash) })
	}
}

// BenchmarkVerifyDraws measures the verification of 200 draws, each of 1,000 proposals.
func BenchmarkVerifyDraws(b *testing.B) {
	s := writeFiles(b, 201, 1000)
	measure(b, "side=ours", 200*1000, "proposal", func() { has(b, verified(s), "ok: 200 draws\n") })
	measure(b, "side=baseline", 200*1000, "proposal", func() {
		decodeLines(s.ChainFile, calculateBlockHash)
		decodeLines(s.DrawsFile, func(r draw.Record) string { return calculateHash(strings.Join(r.Lines, "\n") + "\n") })
	})
}

// BenchmarkRoundEnd measures the time from the end of a round of 10,000 proposals to the first announcement.
// side=baseline hashes the draw lines once and syncs one file.
func BenchmarkRoundEnd(b *testing.B) {
	s := onDisk(b)
	s.Round, s.MaxClients = time.Hour, 0 // no limit: the clients may still be leaving when the last one connects
	b.Run("side=ours", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			n := start(b, s)
			n.visit(10_000)
			client, _ := n.dial("127.0.0.1")
			converse(b, client, "", stakePrompt)
			b.StartTimer()
			n.interrupt() // ends the round
			converse(b, client, "", "winning validator: ")
			b.StopTimer()
			client.Close()
			<-n.served // within shutdownTimeout
			b.StartTimer()
		}
	})
	lines, f := strings.Repeat(calculateHash("")+" 100 50\n", 10_000), must(os.Create(s.ChainFile))
	defer f.Close()
	measure(b, "side=baseline", 10_000, "proposal", func() {
		calculateHash(lines)
		must(f.WriteAt([]byte("x"), 0))
		must(0, f.Sync())
	})
}
