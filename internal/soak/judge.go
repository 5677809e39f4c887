package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"time"
)

// What the servers are set to, and what a busy machine may make anybody wait.
const (
	roundLength, broadcastEvery, lag     = 250 * time.Millisecond, 700 * time.Millisecond, 3 * time.Second
	broadcastBlocks, maxClients, maxLine = 6, 90, 1024
)

// What terminals are told.
const (
	stakePrompt, bpmPrompt = "Enter token balance:", "\nEnter a new BPM:"
	winner, chain          = "\nwinning validator: ", "\n[{"
	full, shutdown         = "the server is full, try again later\n", "\nthe server is shutting down\n"
	period                 = `(0s|(?:1?\d?\d|2[0-4]\d|250)ms)\n` // no longer than a round
)

// A Block is a block as the contract has it. The judge has its own, and its own hash and draw: no fault in the server's can hide.
type Block struct {
	Index                     int
	Timestamp                 string
	BPM                       int
	Hash, PrevHash, Validator string
}

// A record is a line of the draws file.
type record struct {
	Index         int
	Block         string
	Lines         []string
	Ticket, Total json.Number
	NextSeal      string

	entries []entry
	winner  entry
	says    string // how the ticket is told
	end     int    // of the line in the file
}

// An entry is a proposal with its tickets.
type entry struct{ address, stake, bpm, first, last string }

// A moment is when a line was typed; or when something was heard, up to end, and how long the files were then.
type moment struct {
	at              time.Duration
	text            string
	end, kept, drew int
}

// judge holds all that was seen of a server against the contract.
func (l *server) judge() {
	l.records, l.seals = map[int]*record{}, map[int]string{}
	l.readChain()
	l.readDraws()
	for _, t := range l.terminals {
		l.hear(t)
	}
	l.compare()
	l.judgeConsole()
}

// hash is the SHA-256 of lines in hex.
func hash(lines ...string) string {
	return fmt.Sprintf("%x", sha256.Sum256([]byte(strings.Join(lines, "\n")+"\n")))
}

// decode reads a line of JSON into v; it must be exactly as v is written.
func decode(line string, v any) error {
	err := json.Unmarshal([]byte(line), v)
	if form, _ := json.Marshal(v); err == nil && string(form)+"\n" != line {
		err = errors.New("not in its form, or torn")
	}
	return err
}

// readChain reads the chain file. A last line without its end does not count.
func (l *server) readChain() {
	head, end := Block{Index: -1}, 0
	for text := range strings.Lines(whole(l.chain)) {
		var b Block
		err := decode(text, &b)
		_, badTime := time.Parse("2006-01-02T15:04:05.000000000Z", b.Timestamp)
		if err != nil || badTime != nil || b.Index != head.Index+1 || (b.Index == 0) != (b.Validator == "") ||
			b.PrevHash != head.Hash || b.Hash != hash(fmt.Sprint(b.Index), b.Timestamp, fmt.Sprint(b.BPM), b.PrevHash, b.Validator) {
			l.fail(nil, "the chain file: no block after block %d: %s", head.Index, text)
			return
		}
		head, end = b, end+len(text)
		l.blocks, l.lines, l.ends = append(l.blocks, b), append(l.lines, strings.TrimSuffix(text, "\n")), append(l.ends, end)
	}
	l.count["blocks"] += len(l.blocks) - l.first
}

// readDraws reads what the server added to the draws file, and draws each block again. A crash may leave a torn last line,
// or a last draw whose block was not kept.
func (l *server) readDraws() {
	_, seal, _ := strings.Cut(l.console, fmt.Sprintf("\ndraw %d seal: ", l.first))
	seal, _, _ = strings.Cut(seal, "\nlistening on ")
	l.seals[l.first] = cmp.Or(seal, "not on the console")
	if l.killed {
		l.draws = whole(l.draws)
	}
	end := l.drawsFrom
	for text := range strings.Lines(l.draws) {
		d, err := newRecord(text)
		var b Block
		if d.Index < len(l.blocks) {
			b = l.blocks[d.Index]
		}
		crashed := l.killed && d.Index == len(l.blocks)
		switch seal := hash(d.Lines[:min(1, len(d.Lines))]...); {
		case err != nil:
		case l.records[d.Index] != nil || d.Index < l.first || len(d.entries) > maxClients:
			err = errors.New("a second draw, or too many proposals")
		case l.seals[d.Index] != "" && l.seals[d.Index] != seal || d.NextSeal == seal:
			err = errors.New("not the secret that was sealed, or the same again")
		case !crashed && (b.Hash != d.Block || b.Validator != d.winner.address || strconv.Itoa(b.BPM) != d.winner.bpm):
			err = fmt.Errorf("block %d is not what was drawn, %s with BPM %s", d.Index, d.winner.address, d.winner.bpm)
		}
		if err != nil {
			l.fail(nil, "the draws file: %v: %s", err, text)
			return
		}
		end += len(text)
		l.records[d.Index], l.seals[d.Index+1], d.end = d, d.NextSeal, end
		l.count["drawn again"] += strings.Count(d.says, "again")
	}
	for i := l.first; i < len(l.blocks); i++ {
		if l.records[i] == nil {
			l.fail(nil, "block %d has no record of its draw", i)
		}
	}
}

var entryForm = regexp.MustCompile(`^([0-9a-f]{64}) ([1-9]\d*) (\d+|slashed)$`)

// newRecord takes a line of the draws file apart and draws again.
func newRecord(text string) (*record, error) {
	d := &record{}
	if err := decode(text, d); err != nil {
		return d, err
	}
	total, fair := new(big.Int), new(big.Int) // all tickets; those of nobody who was slashed
	for _, line := range d.Lines[min(1, len(d.Lines)):] {
		m := entryForm.FindStringSubmatch(line)
		if m == nil {
			return d, fmt.Errorf("not a line of it: %q", line)
		}
		first := new(big.Int).Add(total, big.NewInt(1)).String()
		stake, _ := new(big.Int).SetString(m[2], 10)
		if total.Add(total, stake); m[3] != "slashed" {
			fair.Add(fair, stake)
		}
		d.entries = append(d.entries, entry{m[1], m[2], m[3], first, total.String()})
	}
	if fair.Sign() == 0 {
		return d, errors.New("nobody can win it")
	}
	sum := hash(d.Lines...)
	if d.pick(sum, total, false); d.winner.bpm == "slashed" {
		d.says += " was slashed, again: "
		d.pick(hash(sum), fair, true)
	}
	if !strings.HasSuffix(d.says, fmt.Sprintf("ticket %s of %s", d.Ticket, d.Total)) {
		return d, fmt.Errorf("drawn again it is %q", d.says)
	}
	return d, nil
}

// pick finds whose ticket a sum gives, of so many in total; again, slashed ones have none.
func (d *record) pick(sum string, total *big.Int, again bool) {
	ticket, _ := new(big.Int).SetString(sum, 16)
	ticket.Add(ticket.Mod(ticket, total), big.NewInt(1))
	d.says += fmt.Sprintf("ticket %d of %d", ticket, total)
	for _, d.winner = range d.entries {
		stake, _ := new(big.Int).SetString(d.winner.stake, 10)
		if !(again && d.winner.bpm == "slashed") && ticket.Sub(ticket, stake).Sign() <= 0 {
			return
		}
	}
}

// drawn is the record of a block; one that fits nothing if there is none.
func (l *server) drawn(index int) *record {
	return cmp.Or(l.records[index], &record{Lines: []string{"no record of this draw"}})
}

// lastPrompt is a text up to its last prompt.
var lastPrompt = regexp.MustCompile("(?s)^.*(?:" + stakePrompt + "|" + bpmPrompt + ")")

// hear holds all that a terminal heard against the contract.
func (l *server) hear(t *terminal) {
	l.count["terminals"]++
	t.chainAt = t.dialed
	refused := strings.HasPrefix(t.heard, full)
	if l.mayBeCut(t) && !refused {
		t.heard = lastPrompt.FindString(t.heard)
	}
	for t.judged < len(t.heard) {
		if fault := l.hearNext(t); fault != "" {
			l.fail(t, "@%d %.300q: %s", t.judged, t.heard[t.judged:], fault)
			return
		}
	}
	if t.last != "" {
		t.answered = len(t.typed) // what is left came too late
	}
	inside := 0 // how many were let in and may still have been in when t came
	for i := 0; refused && i < len(l.terminals); i++ {
		if o := l.terminals[i]; !strings.HasPrefix(o.heard, full) && o.dialed < t.over() && t.dialed < o.over()+lag {
			inside++
		}
	}
	fault := l.inDraw(t, true)
	switch {
	case fault != "":
	case t.vain != "":
		fault = "it waited in vain for " + t.vain
	case !l.mayBeCut(t) && (t.end != "EOF" || t.last == "" && !(t.endedInput && t.open == nil && t.answered == len(t.typed))):
		fault = "the conversation ended without a reason, or badly: " + t.end
	case !t.slow && !refused && t.over() > t.chainAt+broadcastEvery+lag:
		fault = "it was not sent the chain"
	case refused && inside < maxClients:
		fault = fmt.Sprintf("the server is full with %d", inside)
	}
	if fault != "" {
		l.fail(t, "%s", fault)
	}
}

// over is when it hung up or heard the end.
func (t *terminal) over() time.Duration { return cmp.Or(t.hungUp, t.ended) }

// mayBeCut reports whether the conversation may have ended anywhere.
func (l *server) mayBeCut(t *terminal) bool {
	return t.hungUp > 0 || t.over() >= l.asked && (l.killed || t.slow || t.heard == "")
}

// index finds a block in a message: the one whose winner comes next, or, behind the first group, the one before that.
var index = regexp.MustCompile(`^\n(?:you are .*\ndraw |winning .*\nblock |(block |\[.*"Index":))(\d+)`)

// hearNext judges one message, and the prompt that follows it.
func (l *server) hearNext(t *terminal) (fault string) {
	rest, typed := t.heard[t.judged:], moment{}
	if m := index.FindStringSubmatch(rest); m != nil && t.next == 0 {
		t.next, _ = strconv.Atoi(m[2])
		t.next += min(1, len(m[1]))
	}
	if t.answered < len(t.typed) {
		typed = t.typed[t.answered]
	}
	kind, want := l.expected(t, typed, rest)
	m := regexp.MustCompile("^(?:" + want + ")").FindStringSubmatch(rest)
	if m == nil {
		return fmt.Sprintf("want %.300q", want)
	}
	at := t.came[sort.Search(len(t.came), func(i int) bool { return t.came[i].end > t.judged })]
	news := kind == "greeting" || kind == "winner" || kind == "chain"
	if fault := l.note(t, kind, m, typed, at); fault != "" {
		return fault
	}
	t.judged += len(m[0])
	prompt := bpmPrompt
	if t.address == "" {
		prompt = stakePrompt
	}
	if strings.HasPrefix(t.heard[t.judged:], prompt) {
		t.judged += len(prompt)
	} else if t.last == "" && !(news && t.endedInput) {
		return "the wrong prompt"
	}
	if !news {
		t.answered++
	}
	return ""
}

// telnet is what a telnet client says on its own: none of it counts.
var telnet = []string{"\xff\xfd\x03", "\xff\xfb\x1f", "\xff\xf1", "\xff\xfa\x1f\x00\x50\x00\x18\xff\xf0", "\xff\xf4\xff\xfd\x06"}

// clean is a typed line as the server should see it, and whether it is too long for it.
func (m moment) clean() (text string, long bool) {
	text = strings.TrimSuffix(m.text, "\r")
	for _, own := range telnet {
		text = strings.ReplaceAll(text, own, "")
	}
	return strings.TrimSpace(text), len(text) > maxLine
}

// plain is a number without leading zeros.
func plain(n string) string { return cmp.Or(strings.TrimLeft(n, "0"), "0") }

// expected is what a terminal may hear next, where rest begins: the kind of that, and a pattern of it with groups for what
// only the server knows. typed is the line that is to be answered. The first row that applies is the one.
func (l *server) expected(t *terminal, typed moment, rest string) (kind, want string) {
	hears := func(words string) bool { return strings.HasPrefix(rest, words) }
	text, long := typed.clean()
	n, err := strconv.ParseInt(text, 10, 64)
	word, staked, number := strings.ToLower(text), t.address != "", err == nil && !long
	help, pulse := word == "help" || word == "?", staked && number && n >= 0
	d, last, open, forged := l.drawn(t.next), l.drawn(t.next-1), cmp.Or(t.open, &entry{}), ""
	if d.winner.address != "" && d.winner.address == open.address {
		forged = fmt.Sprintf("you forged block %d\n", t.next)
	}
	quoted, block := regexp.QuoteMeta(fmt.Sprintf("%.40q", text)), fmt.Sprintf("\nblock %d", t.next)
	refused, notKept := "\n"+quoted+" is not a stake: ", block+" is drawn and cannot be kept yet; try again later\n"
	newest := l.lines[:min(t.next, len(l.lines))]
	newest = newest[max(0, len(newest)-broadcastBlocks):]
	for _, row := range []struct {
		is         bool
		kind, want string
	}{
		{t.last != "", "", "nothing behind the last words"},
		{t.judged == 0 && hears(full), "full", full},
		{t.judged == 0, "greeting", ""},
		{hears(shutdown), "shutdown", shutdown},
		{hears(winner), "winner", winner + d.winner.address + block + fmt.Sprintf(", BPM %s: %s, secret %s\n%sdraw %d seal: %s\n",
			d.winner.bpm, d.says, d.Lines[0], forged, t.next+1, d.NextSeal)},
		{hears(chain), "chain", regexp.QuoteMeta("\n[" + strings.Join(newest, ",") + "]\n")},
		{t.tries == 3, "goodbye", "\ntoo many tries, goodbye\n"},
		{t.answered == len(t.typed), "", "nothing before something is typed"},
		{word == "quit", "goodbye", "\ngoodbye\n"},
		{word == "draw" && (t.next == 0 || t.next == l.first), "none", "\nno block was drawn since the server started\n"},
		{word == "draw", "draw", fmt.Sprintf("\nblock %d: %s; the lines of its draw:\n%s\n",
			t.next-1, last.says, strings.Join(last.Lines, "\n"))},
		{help && staked, "help", "\nType your pulse, a whole number: it proposes a block, one a round.\n" +
			"Enter: how the round stands. draw: how the last block was drawn. quit: leave.\nAnything else costs your stake.\n"},
		{help, "help", "\nType how many tokens you stake, a whole number from 1 to 9223372036854775807:\n" +
			"the more, the likelier you forge a block. quit: leave.\n"},
		{hears(notKept) && (pulse || word == "") && strings.Contains(l.errs, "is not kept after a second"), "not kept", notKept},
		{word == "" && t.open != nil, "standing",
			block + `: proposals (\d+), tokens (\d+), yours ` + t.stake + ` \(\d+\.\d%\); the winner is drawn in ` + period},
		{word == "" && staked, "standing", block + `: proposals (\d+), tokens (\d+); the winner is drawn in ` + period},
		{word == "", "empty", ""},
		{pulse && t.open != nil, "already",
			block + " is already proposed with BPM " + open.bpm + "; the next round opens in " + period},
		{pulse && hears("\nthe round is full"), "full round", "\nthe round is full; the next one opens in " + period},
		{pulse, "proposed",
			block + " proposed with BPM " + plain(text) + `: tickets (\d+) to (\d+); the winner is drawn in ` + period},
		{staked, "slashed", "\nslashed: " + quoted +
			` is not a pulse \(a whole number, 0 or more\); ` + t.stake + " tokens forfeited\n"},
		{number && n > 0, "staked", fmt.Sprintf("\nyou are validator ([0-9a-f]{64}) with (%d) tokens staked\ndraw %d seal: %s\n",
			n, t.next, l.seals[t.next])},
		{long, "refused", refused + "the line is too long\n"},
		{err != nil && n == 0, "refused", refused + "it must be a whole number, such as 100\n"},
		{n < 1, "refused", refused + "the least is 1\n"},
		{true, "refused", refused + "the most is 9223372036854775807\n"},
	} {
		if row.is {
			return row.kind, row.want
		}
	}
	panic("unreachable")
}

// note takes in what a message says, and judges that and the time of it.
func (l *server) note(t *terminal, kind string, m []string, typed, at moment) (fault string) {
	d := l.drawn(t.next)
	text, _ := typed.clean()
	switch l.count[kind]++; kind {
	case "none":
		t.next = l.first
	case "staked":
		t.address, t.stake = m[1], m[2]
	case "refused":
		t.tries++
	case "proposed":
		left, _ := time.ParseDuration(m[3])
		t.open, t.until = &entry{t.address, t.stake, plain(text), m[1], m[2]}, typed.at+left-time.Millisecond // left was rounded
	case "standing":
		in, _ := strconv.Atoi(m[1])
		for i, e := range append([]entry{{last: "0"}}, d.entries...) {
			if e.bpm == "slashed" {
				break // when, is not known
			} else if i == in && m[2] != e.last {
				fault = "not the tokens of so many proposals"
			}
		}
	case "winner":
		fault = l.inDraw(t, false)
		switch {
		case t.next >= len(l.blocks) || 0 < at.kept && at.kept < l.ends[t.next]:
			fault = "it was not in the chain file"
		case 0 < at.drew && at.drew < d.end && len(l.pieces) == 0:
			fault = "its draw was not in the draws file"
		case t.open != nil && at.at < min(t.until, l.asked):
			fault = "the round ended too early"
		}
		t.next, t.open = t.next+1, nil
	case "chain":
		if t.chains, t.chainAt = t.chains+1, at.at; at.at < t.dialed+time.Duration(t.chains)*broadcastEvery {
			fault = "too early"
		}
	case "shutdown":
		if l.killed || at.at < l.asked || t.open != nil || t.next != 0 && t.next != len(l.blocks) {
			fault = "nobody stopped it, or a winner was not announced"
		}
		t.last = kind
	case "slashed":
		t.slashed, t.last = at.at, kind
	case "goodbye", "full":
		t.last = kind
	}
	return fault
}

// inDraw holds what a terminal proposed for the next block against the draw of that. If it is gone, lines that were not
// answered may have counted.
func (l *server) inDraw(t *terminal, gone bool) (fault string) {
	var want, got entry
	if t.open != nil {
		want = *t.open
	}
	for _, e := range l.drawn(t.next).entries {
		if e.address == t.address {
			got = e
		}
	}
	void, unheard := want, gone && t.answered < len(t.typed)
	void.bpm = "slashed"
	switch {
	case l.records[t.next] == nil, unheard && t.open == nil: // not drawn before a kill; typed last
	case (t.slashed > 0 || unheard) && (got == void || got == entry{}): // without it, if all were slashed
	case got != want, 0 < t.slashed && t.slashed < min(t.until, l.asked):
		fault = fmt.Sprintf("block %d was drawn with %v, it proposed %v, and was slashed at %v", t.next, got, want, t.slashed)
	}
	return fault
}

// compare holds the draws against all that was typed: nobody types the BPM of another, but for 0.
func (l *server) compare() {
	typed, owners := map[string]*terminal{}, map[string]*terminal{}
	for _, t := range l.terminals {
		for _, line := range t.typed {
			text, _ := line.clean()
			typed[plain(text)] = t
		}
		if t.address != "" && owners[t.address] != nil {
			l.fail(t, "the address of %s once more", owners[t.address].name)
		}
		owners[t.address] = t
	}
	for _, d := range l.records {
		for _, e := range d.entries {
			t := typed[e.bpm]
			proposed := t != nil && (t.address == e.address || t.address == "") // it may be gone before it hears its address
			if !proposed && e.bpm != "slashed" && e.bpm != "0" {
				l.fail(t, "block %d: nobody proposed %v, or somebody else", d.Index, e)
			}
		}
	}
}

// mayWarn is what a server may say on stderr, in a crowd such as ours and with such files.
var mayWarn = regexp.MustCompile("the server is full|there is room again|: dropping a last line without its end|" +
	"the last line has no end, but|; the draws go on in|is not kept after a second")

// judgeConsole judges what the server showed, and that it had no reason to complain.
func (l *server) judgeConsole() {
	rest, shown := l.console, true
	for i := l.first; i < len(l.blocks) && shown; i++ {
		d := l.drawn(i)
		want := fmt.Sprintf("block %d: BPM %s, %s, proposals %d, stake %s (",
			i, d.winner.bpm, d.says, len(d.entries), d.winner.stake)
		if _, rest, shown = strings.Cut(rest, want); !shown && !(l.killed && i == len(l.blocks)-1) {
			l.fail(nil, "the console does not show how block %d was drawn:\n%s", i, l.console)
		}
	}
	for text := range strings.Lines(l.errs) {
		if !mayWarn.MatchString(text) {
			l.fail(nil, "on stderr: %q in\n%s", text, l.errs)
			break
		}
	}
}
