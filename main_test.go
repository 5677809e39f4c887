package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

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
	isSlashed = "slashed"
)

var (
	// joined matches the answer to a stake: address, stake, seal, what follows.
	joined = regexp.MustCompile(`\b([0-9a-f]{64})\b(.*)\n.* seal: ([0-9a-f]{64})\n((?s:.*))$`)
	// proposed matches the answer to a BPM that counts: the BPM.
	proposed = regexp.MustCompile(`your tickets? (?:is|are) \d`)
	// won matches an announcement: winner, block, BPM, ticket, secret, the winner's own line, next seal, what follows.
	won = regexp.MustCompile(`\nwinning validator: (\S+)\nblock (\d+), \w+ (-?\d+): (.+)\ndraw \d+ secret: (\S+)\n` +
		`(you .*\n)?draw \d+ seal: (\S+)\n((?s:.*))$`)
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

// find returns the submatches of a pattern in text. If there is no match, it ends the test.
func find(t testing.TB, pattern *regexp.Regexp, text string) []string {
	t.Helper()
	m := pattern.FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("got %q, want a match of %s", text, pattern)
	}
	return m
}

// output collects what is written to it, from any goroutine.
type output struct {
	mu   sync.Mutex
	text strings.Builder
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

// next waits until everything has happened that happens now. It returns what was written since the last call.
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
	s.ChainFile, s.DrawsFile = dir+"/chain.jsonl", dir+"/draws.jsonl"
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

// testNetwork is a network under test in virtual time, and its listener, which accepts what is dialed.
type testNetwork struct {
	*network
	net.Listener   // nil
	t              *testing.T
	interrupt      context.CancelFunc // stops the network, as Ctrl-C does
	dialed         chan net.Conn      // gets nil when the listener is closed
	stdout, stderr output             // the console and the log
	known          map[string]string  // the values of <name> in dialogues
}

func (n *testNetwork) SetDeadline(time.Time) error { return nil }
func (n *testNetwork) Close() error                { n.dialed <- nil; return nil }
func (n *testNetwork) Accept() (net.Conn, error) {
	if conn := <-n.dialed; conn != nil {
		return conn, nil
	}
	return nil, net.ErrClosed
}

// inVirtualTime plays on a new network in virtual time. It fails if a goroutine is left at the end.
func inVirtualTime(t *testing.T, s settings.Settings, play func(n *testNetwork)) {
	defer time.AfterFunc(5*time.Minute, func() { panic(t.Name() + ": virtual time stands still, or never ends") }).Stop()
	synctest.Test(t, func(t *testing.T) {
		ctx, interrupt := context.WithCancel(t.Context())
		n := &testNetwork{t: t, interrupt: interrupt, dialed: make(chan net.Conn, 10), known: map[string]string{}}
		n.network = must(newNetwork(ctx, s, &n.stdout, log.New(&n.stderr, "", 0)))
		var serving sync.WaitGroup
		serving.Go(func() { n.serve(ctx, n) })
		defer func() {
			interrupt()
			serving.Wait()
			time.Sleep(time.Minute) // until clients that do not read are disconnected
		}()
		play(n)
	})
}

// match fails the test if got is not want, in which <name> stands for a value, the same one in all texts.
func (n *testNetwork) match(got, want string) {
	n.t.Helper()
	for name, value := range n.known {
		want = strings.ReplaceAll(want, "<"+name+">", value)
	}
	pattern := regexp.MustCompile(`<([a-z]+\d*)>`).ReplaceAllString(regexp.QuoteMeta(want), `(?P<$1>[\w.:-]+)`)
	re := regexp.MustCompile("^" + pattern + "$")
	m := re.FindStringSubmatch(got)
	if m == nil {
		n.t.Fatalf("got\n%s\n--- want\n%s", got, want)
	}
	for i, name := range re.SubexpNames()[1:] {
		n.known[name] = m[i+1]
	}
}

// testClient is a client in virtual time.
type testClient struct {
	output       // what it has received
	n            *testNetwork
	conn, server conn   // its end of the connection, and the server's
	closed       bool   // by the server
	address      string // of its validator, if it has joined by the method join; so are the next two
	seal         string // that it was sent then
	afterSeal    string // what it was sent after that
}

// connect connects a client from ip, or from an address that is exempt from the limits per address.
func (n *testNetwork) connect(ip ...string) *testClient {
	synctest.Wait() // until everything has happened that happens before
	toServer, atServer := net.Pipe()
	atClient, toClient := net.Pipe()
	server := conn{Conn: atServer, out: toClient, remote: &net.TCPAddr{IP: net.ParseIP(append(ip, "127.0.0.1")[0])}}
	c := &testClient{n: n, conn: conn{Conn: atClient, out: toServer}, server: server}
	n.dialed <- server
	go func() {
		io.Copy(c, c.conn)
		c.closed = true
	}()
	return c
}

// join connects a client that stakes tokens.
func (n *testNetwork) join(tokens int64) *testClient {
	n.t.Helper()
	c := n.connect()
	m := find(n.t, joined, c.send(fmt.Sprintln(tokens)))
	c.address, c.seal, c.afterSeal = m[1], m[3], m[4]
	return c
}

// send sends text and returns what the client receives for it before any time passes.
func (c *testClient) send(text string) string {
	go io.WriteString(c.conn, text)
	return c.next()
}

// propose proposes a block, and fails the test if the proposal does not count.
func (c *testClient) propose(bpm int) {
	c.n.t.Helper()
	find(c.n.t, proposed, c.send(fmt.Sprintln(bpm)))
}

// dialogue checks a dialogue as the player sees it: «72» is a line that is typed, «100⏎72» are two in one packet,
// «30s later» lets time pass, «closed» is the end of the connection.
func (c *testClient) dialogue(script string) {
	c.n.t.Helper()
	parts := strings.Split(script, "«")
	c.n.match(c.next(), parts[0])
	for _, part := range parts[1:] {
		typed, received, _ := strings.Cut(part, "»")
		if later, ok := strings.CutSuffix(typed, " later"); ok {
			time.Sleep(must(time.ParseDuration(later)))
		} else if typed == "closed" {
			c.wantClosed()
		} else {
			go io.WriteString(c.conn, strings.ReplaceAll(typed, "⏎", "\n")+"\n")
			received = strings.TrimPrefix(received, "\n") // the terminal's own echo
		}
		c.n.match(c.next(), received)
	}
}

// wantWinner checks that the client has received the announcement of a block, and then the text after.
func (c *testClient) wantWinner(block int, winner *testClient, after string) {
	c.n.t.Helper()
	text := c.next()
	m := find(c.n.t, won, text)
	if m[1] != winner.address || m[2] != strconv.Itoa(block) || (m[6] != "") != (c == winner) || m[8] != after {
		c.n.t.Errorf("got %q, want block %d by %s, then %q", text, block, winner.address, after)
	}
}

// wantClosed fails the test if the server does not close the connection within the second that the last message may
// take, or sends something else before.
func (c *testClient) wantClosed() {
	c.n.t.Helper()
	if c.dialogue("«1s later»"); !c.closed {
		c.n.t.Error("the connection is still open")
	}
}

// endInput closes the client's side, and disconnect both sides. After reset, the server can neither read nor write.
func (c *testClient) endInput()   { c.conn.CloseWrite() }
func (c *testClient) disconnect() { c.conn.Close() }
func (c *testClient) reset()      { c.server.Close() }

// ---- Dialogues ----

// TestGame plays a game of a winner, another validator and a spectator. It checks what they and the console get.
func TestGame(t *testing.T) {
	s := inMemory()
	s.Broadcast = 59 * time.Second
	inVirtualTime(t, s, func(n *testNetwork) {
		n.match(n.stdout.next(), `(main.Block) {
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
		n.match(n.stdout.next(), "validators: 1 (100 tokens staked)\n  <alice> 100\n"+
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
		n.match(calculateHash("1\n2000-01-01T00:00:30.000000000Z\n72\n"+
			"9fa00adf97e0d81be3e68f14ea88337abd6eaddb6c7016a873733aa5e48ea371\n"+n.known["alice"]+"\n"), "<hash>")
	})
}

// TestPaste sends several lines in one packet, as a paste or a pipe does. Each is answered. Commands cost nothing, and
// may be in any case.
func TestPaste(t *testing.T) {
	s := inMemory()
	s.MaxStake = 1000
	inVirtualTime(t, s, func(n *testNetwork) {
		n.connect().dialogue(`Enter token balance:«x⏎⏎0⏎draw⏎100⏎?⏎72⏎73⏎⏎quit»

"x" is not a stake: enter a whole number, such as 100
Enter token balance:
Your stake is a whole number, from 1 to 1000. The tokens are play money.
The more you stake, the better your chance to forge (add) the next block.
  draw   show the last draw, so that you can check it
  quit   leave
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
		mallory, alice := n.join(math.MaxInt64), n.join(1)
		n.known["mallory"], n.known["alice"] = mallory.address, alice.address
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
		n.match(n.stdout.next(), `validators: 1 (1 token staked)
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

// TestInput types the same lines at both prompts: numbers, and what is neither a stake nor a BPM.
func TestInput(t *testing.T) {
	const notWhole, tooSmall, tooLarge, tooLong = "a whole number", "is 1\n", "is 9223372036854775807", "too long"
	const notBPM, notDigits = "or more); 9 tokens", "or more, in the digits 0 to 9); 9 tokens"
	const cut = `"1\x00\t\u00e4\u00e4\u00e4\u00e4\u00e4…"`
	maxInt, zeros := strconv.Itoa(math.MaxInt), strings.Repeat("0", 1023)
	inVirtualTime(t, inMemory(), func(n *testNetwork) {
		for typed, want := range map[string][2]string{
			"0": {tooSmall, " 0: "}, "1": {" 1 ", " 1: "}, maxInt: {" " + maxInt + " ", " " + maxInt + ": "},
			"  12\t": {" 12 ", " 12: "}, "007": {" 7 ", " 7: "}, zeros + "6\r": {" 6 ", " 6: "},
			"\xff\xfd\x068\xff\xfb\n9": {" 89 ", " 89: "}, "-1": {tooSmall, notBPM},
			"-99999999999999999999": {tooSmall, notBPM}, "9223372036854775808": {tooLarge, "from 0 to " + maxInt},
			"1.5": {notWhole, notBPM}, "1e3": {notWhole, notBPM}, "0x10": {notWhole, notBPM}, "1 0": {notWhole, notBPM},
			"١": {notWhole, notDigits}, "quit now": {notWhole, notBPM}, zeros + "11": {tooLong, notBPM},
			"quit" + strings.Repeat(" ", 1020) + "x": {tooLong, notBPM}, "1\x00\tä" + strings.Repeat("ä", 50): {cut, cut},
		} {
			has(t, n.connect().send(typed+"\n"), want[0])
			has(t, n.join(9).send(typed+"\n"), want[1])
		}
	})
}

// TestLimits fills rounds with proposals, and then the server with connections, in all or from one address. Proposals
// count even if their clients have left.
func TestLimits(t *testing.T) {
	ip := map[rune]string{'4': "10.0.0.7", '6': "2001:db8::1", 'n': "2001:db8::2", 'l': "127.0.0.1"} // n is next to 6
	for _, test := range []struct {
		maxClients, maxPerAddress int
		from, refused             string // by proposal: its address, and x if the round is full
		third                     string // what a third client from the IPv4 address gets
	}{
		{6, 2, "444lll6n", "--x----x", "too many connections from your address"}, {0, 0, "444", "---", stakePrompt},
		{0, 2, "6nl6ll", "---x--", "too many connections from your address"}, {2, 0, "444", "--x", "the server is full"},
	} {
		s := inMemory()
		s.MaxClients, s.MaxPerAddress = test.maxClients, test.maxPerAddress
		inVirtualTime(t, s, func(n *testNetwork) {
			for _, lastLine := range []string{"quit\n", notABPM + "\n", ""} {
				for i, from := range test.from {
					c := n.connect(ip[from])
					answer := c.send(fmt.Sprintf("1\n%d\n", validBPM))
					if proposed.MatchString(answer) == (test.refused[i] == 'x') {
						t.Errorf("with limits %+v, proposal %d gets %q", test, i, answer)
					}
					c.send(lastLine)
					c.reset()
				}
				time.Sleep(n.Round) // the next round is empty
			}
			n.match(n.connect(ip['4']).next()+n.connect(ip['4']).next(), stakePrompt+stakePrompt)
			has(t, n.connect(ip['4']).next(), test.third)
		})
	}
}

// TestEndOfInput closes the client's side. A proposal stands, and its client stays connected until its round ends,
// which may be because the server stops.
func TestEndOfInput(t *testing.T) {
	for _, last := range []string{"", shutdownMessage} {
		inVirtualTime(t, inMemory(), func(n *testNetwork) {
			alice, bob, eve := n.join(math.MaxInt64), n.join(20), n.connect()
			alice.send(strconv.Itoa(validBPM)) // a last line without a newline counts
			alice.endInput()
			find(t, proposed, alice.next())
			eve.next()
			eve.endInput()
			eve.wantClosed() // without a proposal, there is nothing to wait for
			if time.Sleep(28 * time.Second); last != "" {
				n.interrupt()
				late := n.connect() // accepted a moment before
				go n.handleConn(late.server, netip.Prefix{})
				n.match(late.next(), stakePrompt+last)
			}
			time.Sleep(time.Second)
			alice.wantWinner(1, alice, noPrompt)
			alice.wantClosed()
			bob.wantWinner(1, alice, bpmPrompt+last)
		})
	}
}

// TestVanishingClient makes a proposal. Then the client does not read any more, or its connection is reset. Nobody
// waits for it, and its proposal stands.
func TestVanishingClient(t *testing.T) {
	s := inMemory()
	s.Round, s.Broadcast = 170*time.Second, time.Minute
	for how, vanish := range map[string]func(c *testClient){
		"stalled":            func(c *testClient) { c.conn.SetReadDeadline(time.Now()) },
		"reset":              (*testClient).reset,
		"input ended, reset": func(c *testClient) { c.endInput(); synctest.Wait(); c.reset() },
	} {
		inVirtualTime(t, s, func(n *testNetwork) {
			alice, eve := n.join(100), n.connect()
			alice.propose(validBPM)
			vanish(alice)
			time.Sleep(100 * time.Second) // the next broadcast finds that it is gone, or does not read
			has(t, n.stdout.next(), "validators: 0 ", "  left: "+alice.address+" 100\n")
			if log := n.stderr.next(); strings.Contains(log, "disconnected 1 client") != (how == "stalled") {
				t.Errorf("%s: the log says %q", how, log)
			}
			time.Sleep(70 * time.Second)
			eve.wantWinner(1, alice, stakePrompt)
		})
	}
}

// TestDays plays for two weeks. Two validators propose in any order, among visitors who leave or are slashed. Rounds
// end by the clock. Each draw is as its seal promised, and wins follow stakes. Neither memory nor the number of
// goroutines grows, except with the proposals of a round, which take little.
func TestDays(t *testing.T) {
	s, rounds := inMemory(), 4000
	s.Round, s.Broadcast = 5*time.Minute, 5*time.Minute
	inputs := []string{"", "5\n50\n", "5\n50\nno\n", "x\nx\nx\n", "5\n50\n51\n" + strings.Repeat("y", 2000), "\x00\xff\n5"}
	inVirtualTime(t, s, func(n *testNetwork) {
		mallory := n.join(5)
		mallory.send(fmt.Sprintf("%d\n%s\n", validBPM, notABPM))
		time.Sleep(n.Round + time.Second) // nobody could win, so the next round keeps the seal
		alice, bob, eve, seal, text := n.join(3), n.join(7), n.connect(), mallory.seal, ""
		wins, memory, goroutines := map[string]float64{}, int64(0), 0
		for round := range rounds {
			first, second, visitor := alice, bob, n.connect()
			if rand.IntN(2) == 0 {
				first, second = bob, alice
			}
			first.propose(validBPM)
			visitor.send(inputs[rand.IntN(len(inputs))])
			[]func(){visitor.endInput, visitor.disconnect, visitor.reset}[round%3]()
			second.propose(validBPM + 1)
			time.Sleep(n.Round) // the broadcast comes after the block
			text = eve.next()
			m := find(t, won, text)
			_, lines, _ := strings.Cut(eve.send("draw\n"), " check it:\n")
			d := must(draw.Parse(strings.Split(strings.TrimSuffix(lines, "\n"+stakePrompt), "\n")))
			o := d.Outcome()
			e := d.Entries[o.Winner]
			if !slices.Equal(m[1:6], []string{e.Name, m[2], e.Note, o.String(), d.Secret()}) || d.Seal() != seal {
				t.Errorf("got %q, but with seal %s, the draw is %q", m[0], seal, lines)
			}
			seal = m[7]
			wins[strings.Clone(m[1])]++
			_, total := d.Eligible()
			if has(t, n.stdout.next(), fmt.Sprintf(" staked %d of %d tokens ", e.Tickets, total)); round == rounds/10 {
				memory, goroutines = heap(), runtime.NumGoroutine()
			}
		}
		has(t, text, fmt.Sprintf(`[{"Index":%d,`, rounds+1-n.BroadcastBlocks), `"2000-01-14T21:25:00.000000000Z"`)
		if share := wins[bob.address] / (wins[alice.address] + wins[bob.address]); math.Abs(share-0.7) > 0.04 {
			t.Errorf("7 of 10 tokens win %.3f of the rounds", share) // which is 5 standard deviations off
		}
		if grew := heap() - memory; grew > 400<<10 || runtime.NumGoroutine() > goroutines+5 {
			t.Errorf("%d bytes and %d goroutines, which were %d", grew, runtime.NumGoroutine(), goroutines)
		}
		for range 3000 {
			c := n.join(1)
			c.propose(validBPM)
			c.reset()
		}
		time.Sleep(2 * time.Minute) // until the clients' timers have expired
		if grew := heap() - memory; grew > 3<<20 {
			t.Errorf("3,000 proposals take %d bytes", grew)
		}
		time.Sleep(n.Round)
		has(t, eve.send("draw\n"), " lines are too many to show, see the draws file\n"+stakePrompt)
	})
}

// heap returns how many bytes of memory are in use.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// TestUnsavedBlock draws a block that cannot be saved. The draw is final. Until the block is saved, nobody hears of it,
// and only proposals wait. Then rounds end by the clock again. A stop waits for the block, too, but not forever.
func TestUnsavedBlock(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("on Windows, nobody can move a file that the server has open")
	}
	for end, left := range map[string]string{"stop": "", "stop, save": "", "1.5s": " in 27s", "60.5s": " in 30s"} {
		inVirtualTime(t, onDisk(t), func(n *testNetwork) {
			alice, bob, eve := n.join(100), n.join(25), n.connect()
			alice.propose(validBPM)
			bob.propose(validBPM)
			eve.next()
			must(0, os.Rename(n.ChainFile, n.ChainFile+".away"))
			restore := func() { must(0, os.Rename(n.ChainFile+".away", n.ChainFile)) }
			time.Sleep(n.Round)
			has(t, eve.send("draw\n"), "no block has been drawn")
			carol := n.join(10)
			n.match(carol.seal+carol.afterSeal, alice.seal+bpmPrompt) // no round is open
			time.Sleep(500 * time.Millisecond)
			n.match(carol.send("50\n"), "")
			switch end {
			case "stop, save":
				n.interrupt()
				restore()
				time.Sleep(500 * time.Millisecond)
				find(t, won, eve.next())
				has(t, verified(n.Settings), "ok: 2 blocks, ", "ok: 1 draw\n")
				return
			case "stop":
				n.interrupt()
				carol.dialogue("«1999ms later»«1ms later»" + shutdownMessage)
				has(t, n.stderr.next(), "block 1 was not announced")
				return
			}
			notSaved := n.notSaved() + bpmPrompt
			carol.dialogue("«499ms later»«1ms later»" + notSaved + "«50»\n" + notSaved + "«»\n" + notSaved)
			has(t, bob.send(notABPM+"\n"), isSlashed) // too late to void its proposal
			alice.endInput()                          // it still gets the announcement
			has(t, n.stderr.next(), "saving block 1 is taking over a second; ")
			time.Sleep(must(time.ParseDuration(end)))
			restore()
			n.match(eve.next(), "")
			time.Sleep(500 * time.Millisecond)
			find(t, won, eve.next())
			find(t, regexp.MustCompile(alice.address+` \d+ 50\n`+bob.address+` \d+ 50\n`), eve.send("draw\n"))
			has(t, n.stdout.next(), "; 2 proposals\n")
			has(t, carol.send("50\n"), left) // the rest of the round; missed rounds are not made up for
			find(t, won, alice.next())
			alice.wantClosed()
		})
	}
}

// ---- Files ----

// verified returns what verify prints about the files, and its error.
func verified(s settings.Settings) string {
	var out bytes.Buffer
	err := verify(s.ChainFile, s.DrawsFile, &out, &out)
	return fmt.Sprint(&out, "error: ", err)
}

// load returns a network that has loaded the files, and does nothing by itself.
func load(t testing.TB, s settings.Settings) *network {
	return must(newNetwork(t.Context(), s, io.Discard, log.New(io.Discard, "", 0)))
}

func read(name string) string { return string(must(os.ReadFile(name))) }
func write(name string, text ...string) {
	must(0, os.WriteFile(name, []byte(strings.Join(text, "")), 0o644))
}

// writeChain writes a chain of blocks, without draws. It is always the same, because the times are in the future.
func writeChain(t testing.TB, blocks int) settings.Settings {
	s, lines := onDisk(t), []string(nil)
	block := generateBlock(Block{Index: -1, Timestamp: "2999-12-31T23:59:59.000000000Z"}, 0, "")
	for range blocks {
		lines = append(lines, string(linefile.Encode(block)), "\n")
		block = generateBlock(block, validBPM, block.Hash)
	}
	write(s.ChainFile, lines...)
	return s
}

// TestRestart checks that a server carries on where the last one stopped, even if the last newline is gone, or the last
// block, as if it had never been announced. Then it verifies the files, and parts of them.
func TestRestart(t *testing.T) {
	hash := regexp.MustCompile(`"Hash":("\w+)`)
	s := writeChain(t, 3)
	s.Broadcast, s.BroadcastBlocks = 45*time.Second, 0
	for _, test := range []struct {
		blocks    int // that are left in the file
		cut, draw string
	}{
		{3, "", "no block has been drawn yet\n"}, {4, "\n", "\nblock 3: ticket "},
		{4, "", "\nblock 4 was drawn last, but is not in the chain\n"},
	} {
		lines := strings.SplitAfter(read(s.ChainFile), "\n")[:test.blocks]
		write(s.ChainFile, strings.TrimSuffix(strings.Join(lines, ""), test.cut))
		inVirtualTime(t, s, func(n *testNetwork) { // in which the clock is set back
			genesis, head := find(t, hash, lines[0])[1], find(t, hash, lines[test.blocks-1])[1]
			has(t, n.stdout.next(), " Hash: (string) (len=64) "+genesis,
				fmt.Sprintf("restored %d blocks from %s; the head is\n  %s\n", test.blocks, s.ChainFile, head[1:]))
			has(t, n.stderr.next(), s.ChainFile+": block ", " check the clock\n")
			has(t, n.connect().send("draw\n"), test.draw)
			alice := n.join(math.MaxInt64) // if it were small, a changed draw line might give the same ticket
			alice.propose(validBPM)
			time.Sleep(n.Round)
			alice.wantWinner(test.blocks, alice, bpmPrompt)
			time.Sleep(15 * time.Second)
			has(t, alice.next(), "["+strings.ReplaceAll(strings.Join(lines, "")+`{"Index":`, "\n", ","))
			alice.send(notABPM + "\n") // so that no validator is left, whatever the rules
		})
	}
	chain, draws := strings.SplitAfter(read(s.ChainFile), "\n"), strings.SplitAfter(read(s.DrawsFile), "\n")
	want := func(result string, chain, draws []string) {
		t.Helper()
		write(s.ChainFile, chain...)
		write(s.DrawsFile, draws...)
		has(t, verified(s), result)
	}
	want("ok: 2 draws; 2 blocks without a draw record; 1 draw not announced (line 2); 2 new seals, ", chain, draws)
	want("error: "+s.DrawsFile+": line 1: ", chain, []string{strings.Replace(draws[0], " 50", " 51", 1)})
	want(s.DrawsFile+": ignoring a partial last line\nok: 5 blocks, ", chain, []string{draws[0][:100]})
	want(s.ChainFile+": ignoring a partial last line\nok: 1 block, ", []string{chain[0], chain[1][:100]}, nil)
	want("error: "+s.DrawsFile+": last line: its newline is corrupt", chain, []string{draws[0][:len(draws[0])-1], "x"})
	want(s.DrawsFile+": counting the last line", chain, []string{strings.TrimSuffix(draws[0], "\n")})
	n := load(t, s) // in which the last block has no record
	has(t, string(n.drawAnswer), "\nblock 3: ticket ")
	n.ledger.Close()
	want(s.ChainFile+": counting the last line", []string{chain[0], strings.TrimSuffix(chain[1], "\n")}, nil)
	for at := range chain[0] { // no byte can change unnoticed
		changed := []byte(chain[0])
		changed[at] ^= []byte{0x01, 0x20}[at%2] // a digit becomes another one, a letter becomes upper case
		want("error: "+s.ChainFile+": line 1: ", []string{string(changed), chain[1]}, nil)
	}
	file := chain[0] + chain[1]
	for at := range file { // a crash may end the file anywhere: complete blocks stay, and nothing else
		write(s.ChainFile, file[:at])
		write(s.DrawsFile)
		load(t, s).ledger.Close()
		complete := file[:strings.LastIndex(file[:at+1], "\n")+1] // with the block that lacks only its newline
		left := read(s.ChainFile)
		if complete != "" && left != complete || complete == "" && strings.Count(left, "\n") != 1 { // a new genesis block
			t.Errorf("of %q, the start leaves %q", file[:at], left)
		}
	}
}

// TestValidateBlock checks which blocks can follow another one.
func TestValidateBlock(t *testing.T) {
	want := func(err string, block, before Block) {
		t.Helper()
		got := validateBlock(block, before)
		if !strings.HasPrefix(fmt.Sprint(got), err) || isBlockValid(block, before) != (got == nil) {
			t.Errorf("%+v after %+v: got %v, want %s", block, before, got, err)
		}
	}
	none, genesis := beforeGenesis(), generateBlock(beforeGenesis(), 0, "")
	first := generateBlock(genesis, validBPM, genesis.Hash)
	edited := first
	edited.BPM++
	want("wrong index", first, first)
	want("wrong previous hash", first, Block{Hash: first.Hash})
	want("wrong hash", edited, genesis)
	want("wrong genesis block", generateBlock(none, validBPM, ""), none)
	want("wrong genesis block", generateBlock(none, 0, "alice"), none)
	want("wrong BPM", generateBlock(genesis, math.MinInt, genesis.Hash), genesis)
	want("wrong validator", generateBlock(genesis, validBPM, genesis.Hash+"0"), genesis)
	// If a field could contain a newline, two blocks could have the same hash.
	want("wrong validator", generateBlock(genesis, validBPM, genesis.Hash[1:]+"\n"), genesis)
	for _, edited.Timestamp = range []string{
		"1999-12-31T23:59:59.999999999Z", "2999-11-23T15:38:49Z", "2999-11-23T15:38:49.1234+01:00", "zzz",
		"2999-11-23T15:38:49,123456789Z", "2999-13-23T15:38:49.123456789Z", "2999-11-23T15:38:49.12345678Z",
	} {
		edited.Hash = calculateBlockHash(edited)
		want("wrong timestamp", edited, genesis)
	}
}

// TestLoadedMemory checks that the memory of a server does not grow with the chain that it loads.
func TestLoadedMemory(t *testing.T) {
	before := heap()
	defer load(t, writeChain(t, 20_000)).ledger.Close()
	if grew := heap() - before; grew > 1<<20 { // of 6 MB in the file
		t.Errorf("20,000 blocks take %d bytes", grew)
	}
}

// ---- Benchmarks ----

// measure runs a benchmark of something that handles count things. It also reports the time for each of them.
func measure(b *testing.B, name string, count int, thing string, run func(b *testing.B)) {
	b.Run(name, func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			run(b)
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*count), "ns/"+thing)
	})
}

// BenchmarkDraw measures the draw of one round. side=tutorial is a pool with one entry per token, in which each
// proposer is looked up first. It is left out where it would take too long.
func BenchmarkDraw(b *testing.B) {
	for _, size := range [][2]int{{100, 1000}, {100, 10_000}, {10_000, 1000}, {100_000, 1000}} {
		proposers, tokens := size[0], size[1]
		name, d := fmt.Sprintf("proposers=%d/tokens=%d/side=", proposers, tokens), draw.New("", draw.None)
		for i := range proposers {
			d.Add(draw.Entry{Name: calculateHash(strconv.Itoa(i)), Tickets: int64(tokens), Note: "70"})
		}
		measure(b, name+"ours", proposers, "proposer", func(*testing.B) { d.Outcome() })
		if proposers == 100 {
			measure(b, name+"tutorial", proposers, "proposer", func(*testing.B) {
				var pool []string
				for _, e := range d.Entries {
					if !slices.Contains(pool, e.Name) {
						pool = append(pool, slices.Repeat([]string{e.Name}, tokens)...)
					}
				}
				has(b, pool[rand.IntN(len(pool))], "")
			})
		}
	}
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
	const blocks = 1_000_000
	s := writeChain(b, blocks)
	measure(b, "side=ours", blocks, "block", func(*testing.B) { load(b, s).ledger.Close() })
	measure(b, "side=baseline", blocks, "block", func(*testing.B) { decodeLines(s.ChainFile, calculateBlockHash) })
}

// forge plays a round without clients until its block is announced. The timer runs from the end of the round.
func (n *network) forge(b *testing.B, proposals int) {
	b.StopTimer()
	for i := range proposals {
		p := &proposal{client: &client{address: calculateHash(strconv.Itoa(i))}, bpm: validBPM}
		n.round.addProposal(p, int64(100+i))
		p.client = nil // it leaves
	}
	b.StartTimer()
	n.pickWinner()
	<-n.ledger.Saved
	n.announce()
}

// BenchmarkRounds measures the verification of 200 draws, each of 1,000 proposals. Then it measures the time from the
// end of a round of 10,000 proposals to the announcement; its baseline hashes the draw lines once and syncs one file.
func BenchmarkRounds(b *testing.B) {
	s := onDisk(b)
	n := load(b, s)
	defer n.ledger.Close()
	for range 200 {
		n.forge(b, 1000)
	}
	measure(b, "verify/side=ours", 200*1000, "proposal", func(*testing.B) { has(b, verified(s), "error: <nil>") })
	measure(b, "verify/side=baseline", 200*1000, "proposal", func(*testing.B) {
		decodeLines(s.ChainFile, calculateBlockHash)
		decodeLines(s.DrawsFile, func(r draw.Record) string { return calculateHash(strings.Join(r.Lines, "\n") + "\n") })
	})
	measure(b, "end/side=ours", 10_000, "proposal", func(b *testing.B) { n.forge(b, 10_000) })
	lines, f := strings.Repeat(calculateHash("")+" 100 50\n", 10_000), must(os.CreateTemp(b.TempDir(), ""))
	defer f.Close()
	measure(b, "end/side=baseline", 10_000, "proposal", func(*testing.B) {
		calculateHash(lines)
		must(f.WriteAt([]byte("x"), 0))
		must(0, f.Sync())
	})
}
