package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"regexp"
	"slices"
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

// A life is one server from its start to its end, and all that was seen of it. Here and below, what follows an empty line
// is what the judge has learnt. Times count from the start of the server.
type life struct {
	number, first               int           // first: the first block that it may forge
	asked                       time.Duration // when it was told to end
	killed, torn, moved         bool          // by force; the chain file was torn when it started; somebody moved the draws file
	chain, draws, console, errs string        // the chain file at its end; what it added to the draws file; what it said
	drawsFrom                   int           // where that begins in the draws file
	terminals                   []*transcript

	blocks  []Block
	lines   []string // of the chain file, and
	ends    []int    // where these end
	records map[int]*record
	seals   map[int]string
	faults  []string
	count   map[string]int
}

// A transcript is all that happened at one terminal: when it dialed, hung up, and heard the end, which is "EOF" or an error;
// what it waited for in vain; whether it did not read at once (slow), or for so long that the server may have cut it off
// (stuck); and all of it for people (log).
type transcript struct {
	name, heard, end, vain  string
	dialed, hungUp, ended   time.Duration
	typed, came             []moment // lines, the last perhaps without its end; parts of what was heard
	endedInput, slow, stuck bool
	log                     strings.Builder

	judged, answered, tries, chains  int           // how much of what was heard, and how many of the lines; stakes; broadcasts
	greeted, slashed, until, chainAt time.Duration // until: the open round must not end before; chainAt: the last broadcast
	address, stake, last             string        // last: the kind of its last words
	next                             int           // the block whose winner it hears next; 0: not known
	open                             *entry        // in the open round
	proposals                        map[int]*entry
}

// A moment is when a line was typed; or when something was heard, up to end, and how long the files were then.
type moment struct {
	at         time.Duration
	text       string
	end        int
	kept, drew int
}

// Block is a block as the contract has it. The judge has its own, and its own hash and draw: no fault in the server's can hide.
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
	Ticket, Total *big.Int
	NextSeal      string

	entries []entry
	winner  entry
	says    string // how the ticket is told
	end     int    // of the line in the file
}

// An entry is a proposal with its tickets.
type entry struct{ address, stake, bpm, first, last string }

// judge holds all that was seen of a server against the contract.
func (l *life) judge() {
	l.records, l.seals, l.count = map[int]*record{}, map[int]string{}, map[string]int{}
	l.readChain()
	l.readDraws()
	for _, t := range l.terminals {
		l.hear(t)
	}
	l.compare()
	l.judgeConsole()
}

// fail notes a fault, with the transcript of the terminal that saw it, if one did.
func (l *life) fail(t *transcript, format string, args ...any) {
	fault := fmt.Sprintf("server %d: "+format, append([]any{l.number}, args...)...)
	if t != nil {
		fault = fmt.Sprintf("%s: %s\n%s", t.name, fault, &t.log)
	}
	l.faults = append(l.faults, fault)
}

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
func (l *life) readChain() {
	head, end := Block{Index: -1}, 0
	for text := range strings.Lines(whole(l.chain)) {
		var b Block
		err := decode(text, &b)
		_, badTime := time.Parse("2006-01-02T15:04:05.000000000Z", b.Timestamp)
		if err != nil || badTime != nil || b.Index != head.Index+1 || b.PrevHash != head.Hash || (b.Index == 0) != (b.Validator == "") ||
			b.Hash != hash(strconv.Itoa(b.Index), b.Timestamp, strconv.Itoa(b.BPM), b.PrevHash, b.Validator) {
			l.fail(nil, "the chain file: no block after block %d: %s", head.Index, text)
			return
		}
		head, end = b, end+len(text)
		l.blocks, l.lines, l.ends = append(l.blocks, b), append(l.lines, text[:len(text)-1]), append(l.ends, end)
	}
}

// readDraws reads what the server added to the draws file, and draws each block again. A crash may leave a torn last line,
// or a last draw whose block was not kept.
func (l *life) readDraws() {
	if l.killed {
		l.draws = whole(l.draws)
	}
	end := l.drawsFrom
	for text := range strings.Lines(l.draws) {
		end += len(text)
		d, b := &record{end: end}, Block{}
		err := decode(text, d)
		if err == nil {
			err = d.drawAgain()
		}
		if d.Index < len(l.blocks) {
			b = l.blocks[d.Index]
		}
		crashed := l.killed && d.Index == len(l.blocks)
		switch {
		case err != nil:
		case l.records[d.Index] != nil || d.Index < l.first || len(d.entries) > maxClients || l.seal(d.Index, hash(d.Lines[0])) != hash(d.Lines[0]):
			err = errors.New("a second draw, too many proposals, or not the secret that was sealed")
		case !crashed && (b.Hash != d.Block || b.Validator != d.winner.address || strconv.Itoa(b.BPM) != d.winner.bpm):
			err = fmt.Errorf("block %d is not what was drawn, %s with BPM %s", d.Index, d.winner.address, d.winner.bpm)
		}
		if err != nil {
			l.fail(nil, "the draws file: %v: %s", err, text)
			return
		}
		l.records[d.Index], l.count["draws"], l.count["blocks"] = d, l.count["draws"]+1, len(l.blocks)-l.first
		l.seal(d.Index+1, d.NextSeal)
		l.count["drawn again"] += strings.Count(d.says, "again")
	}
	for i := l.first; i < len(l.blocks); i++ {
		if l.records[i] == nil {
			l.fail(nil, "block %d has no record of its draw", i)
		}
	}
}

var entryForm = regexp.MustCompile(`^([0-9a-f]{64}) ([1-9]\d*) (\d+|slashed)$`)

// drawAgain takes the lines of a draw apart and draws again.
func (d *record) drawAgain() error {
	total, fair := new(big.Int), new(big.Int) // all tickets; those of nobody who was slashed
	var stakes []*big.Int
	for _, line := range d.Lines[min(1, len(d.Lines)):] {
		m := entryForm.FindStringSubmatch(line)
		if m == nil {
			return fmt.Errorf("not a line of it: %q", line)
		}
		stake, _ := new(big.Int).SetString(m[2], 10)
		first := new(big.Int).Add(total, big.NewInt(1)).String()
		if total.Add(total, stake); m[3] != "slashed" {
			fair.Add(fair, stake)
		}
		d.entries, stakes = append(d.entries, entry{m[1], m[2], m[3], first, total.String()}), append(stakes, stake)
	}
	for sum, again := hash(d.Lines...), false; fair.Sign() > 0; sum, total, again = hash(sum), fair, true {
		ticket, _ := new(big.Int).SetString(sum, 16)
		left := new(big.Int).Add(ticket.Mod(ticket, total), big.NewInt(1))
		d.says += fmt.Sprintf("ticket %d of %d", ticket.Set(left), total)
		for i, e := range d.entries {
			if d.winner = e; !(again && e.bpm == "slashed") && left.Sub(left, stakes[i]).Sign() <= 0 {
				break
			}
		}
		if d.winner.bpm != "slashed" && d.Ticket.Cmp(ticket) == 0 && d.Total.Cmp(total) == 0 {
			return nil
		} else if d.winner.bpm != "slashed" {
			break
		}
		d.says += " was slashed, again: "
	}
	return fmt.Errorf("drawn again it is %q", d.says)
}

// drawn is the record of a block; one that fits nothing if there is none.
func (l *life) drawn(index int) *record {
	return cmp.Or(l.records[index], &record{Lines: []string{"no record of this draw"}})
}

// seal is the seal of a draw: wherever it is known from, it must be the first that was.
func (l *life) seal(index int, seal string) string {
	l.seals[index] = cmp.Or(l.seals[index], seal)
	return l.seals[index]
}

// hear holds all that a terminal heard against the contract.
func (l *life) hear(t *transcript) {
	t.proposals, t.chainAt = map[int]*entry{}, t.dialed
	for l.count["terminals"]++; t.judged < len(t.heard); l.count["messages"]++ {
		if fault := l.hearNext(t); fault != "" {
			l.fail(t, "@%d %.300q: %s", t.judged, t.heard[t.judged:], fault)
			return
		}
	}
	inside := 0 // how many were let in and may still have been in when t came
	for i := 0; t.last == "full" && i < len(l.terminals); i++ {
		if o := l.terminals[i]; !strings.HasPrefix(o.heard, full) && o.dialed < t.over() && t.dialed < o.over()+lag {
			inside++
		}
	}
	reason := t.last != "" || t.endedInput && t.open == nil && t.answered == len(t.typed)
	switch {
	case t.vain != "":
		l.fail(t, "it waited in vain for %s", t.vain)
	case !l.mayBeCut(t) && (t.end != "EOF" || !reason):
		l.fail(t, "the conversation ended without a reason, or badly: %s", t.end)
	case !t.slow && t.last != "full" && t.over() > t.chainAt+broadcastEvery+lag:
		l.fail(t, "it was not sent the chain")
	case t.last == "full" && inside < maxClients:
		l.fail(t, "the server is full with %d", inside)
	case t.last != "":
		t.answered = len(t.typed) // what is left came too late
	}
}

// over is when it hung up or heard the end.
func (t *transcript) over() time.Duration { return cmp.Or(t.hungUp, t.ended) }

// mayBeCut reports whether the conversation may have ended anywhere.
func (l *life) mayBeCut(t *transcript) bool {
	return t.hungUp > 0 || t.stuck || t.over() >= l.asked && (l.killed || t.slow || t.greeted == 0)
}

const (
	stakePrompt, bpmPrompt = "Enter token balance:", "\nEnter a new BPM:"
	winner, chain          = "\nwinning validator: ", "\n[{"
	full, shutdown         = "the server is full, try again later\n", "\nthe server is shutting down\n"
	period                 = `(0s|[1-9]\d{0,2}ms|[1-9]\d*s)\n`
)

// index finds a block in a message: the one whose winner comes next, or the one before that.
var index = regexp.MustCompile(`^\n(?:you are .*\ndraw (\d+)|winning .*\nblock (\d+)|(?:block |\[.*"Index":)(\d+)(?:: ticket|,.*\]\n))`)

// hearNext judges one message, and the prompt that follows it.
func (l *life) hearNext(t *transcript) (fault string) {
	rest, news, typed, kind, want := t.heard[t.judged:], true, moment{}, "full", full
	if t.next == 0 {
		if m := index.FindStringSubmatch(rest); m != nil {
			t.next, _ = strconv.Atoi(m[1] + m[2] + m[3])
			t.next += min(1, len(m[3]))
		}
	}
	d, newest := l.drawn(t.next), l.lines[:min(t.next, len(l.lines))]
	switch {
	case strings.HasPrefix(rest, full):
	case t.greeted == 0:
		kind, want = "greeting", stakePrompt
	case strings.HasPrefix(rest, shutdown):
		kind, want = "shutdown", shutdown
	case strings.HasPrefix(rest, winner):
		forged := map[bool]string{true: fmt.Sprintf("you forged block %d\n", t.next)}[t.open != nil && d.winner.address == t.address]
		kind, want = "winner", fmt.Sprintf("%s%s\nblock %d, BPM %s: %s, secret %s\n%sdraw %d seal: %s\n",
			winner, d.winner.address, t.next, d.winner.bpm, d.says, d.Lines[0], forged, t.next+1, l.seals[t.next+1])
	case strings.HasPrefix(rest, chain):
		kind, want = "chain", "\n["+strings.Join(newest[max(0, len(newest)-broadcastBlocks):], ",")+"]\n"
	case t.tries == 3:
		kind, want = "goodbye", "\ntoo many tries, goodbye\n"
	case t.answered < len(t.typed):
		typed, news = t.typed[t.answered], false
		kind, want = l.reply(t, typed)
	}
	m := []string{want}
	if !strings.HasPrefix(rest, want) { // it is a pattern
		m = nil
		if pattern, err := regexp.Compile("^(?:" + want + ")"); err == nil {
			m = pattern.FindStringSubmatch(rest)
		}
	}
	if m == nil && l.mayBeCut(t) && (strings.HasPrefix(want, rest) || strings.Count(rest, "\n") < 2 || kind == "staked") {
		t.judged = len(t.heard)
		return ""
	} else if m == nil || t.last != "" {
		return fmt.Sprintf("want %.300q", want)
	}
	at := t.came[sort.Search(len(t.came), func(i int) bool { return t.came[i].end > t.judged })]
	if left, err := time.ParseDuration(m[len(m)-1]); err == nil && left > roundLength || typed.at > at.at {
		return "longer than a round, or answered before it was typed"
	}
	if fault := l.note(t, kind, m, typed, at); fault != "" {
		return fault
	}
	prompt, after := bpmPrompt, rest[len(m[0]):]
	if t.address == "" {
		prompt = stakePrompt
	}
	switch t.judged += len(m[0]); {
	case t.last != "" || kind == "greeting":
	case strings.HasPrefix(after, prompt):
		t.judged += len(prompt)
	case strings.HasPrefix(prompt, after) && l.mayBeCut(t):
		t.judged = len(t.heard)
	case !t.endedInput || !news:
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

// reply is how a line must be answered: the kind of that, and what it says, or a pattern of it with groups for what only the
// server knows. The first row that applies is the one.
func (l *life) reply(t *transcript, typed moment) (kind, want string) {
	text, long := typed.clean()
	n, err := strconv.ParseInt(text, 10, 64)
	word, quoted, staked, number := strings.ToLower(text), regexp.QuoteMeta(fmt.Sprintf("%.40q", text)), t.address != "", err == nil && !long
	help, pulse, refused := word == "help" || word == "?", staked && number && n >= 0, "\n"+quoted+" is not a stake: "
	d, open, late := l.drawn(t.next-1), cmp.Or(t.open, &entry{}), ""
	if strings.Contains(l.errs, "is not kept after a second") {
		late = fmt.Sprintf("|\nblock %d is drawn and cannot be kept yet; try again later\n", t.next)
	}
	for _, row := range []struct {
		is         bool
		kind, want string
	}{
		{word == "quit", "goodbye", "\ngoodbye\n"},
		{word == "draw" && (t.next == 0 || t.next == l.first), "none", "\nno block was drawn since the server started\n"},
		{word == "draw", "draw", fmt.Sprintf("\nblock %d: %s; the lines of its draw:\n%s\n", t.next-1, d.says, strings.Join(d.Lines, "\n"))},
		{help && staked, "help", "\nType your pulse, a whole number: it proposes a block, one a round.\n" +
			"Enter: how the round stands. draw: how the last block was drawn. quit: leave.\nAnything else costs your stake.\n"},
		{help, "help", "\nType how many tokens you stake, a whole number from 1 to 9223372036854775807:\nthe more, the likelier you forge a block. quit: leave.\n"},
		{word == "" && staked, "standing", fmt.Sprintf("\nblock %d: (?:%s); the winner is drawn in %s", t.next, l.standings(t), period) + late},
		{word == "", "empty", ""},
		{pulse && t.open != nil, "already", fmt.Sprintf("\nblock %d is already proposed with BPM %s; the next round opens in %s", t.next, open.bpm, period) + late},
		{pulse, "proposed", fmt.Sprintf("\nblock %d proposed with BPM %s: tickets (\\d+) to (\\d+); the winner is drawn in %s|\nthe round is full; the next one opens in %s",
			t.next, plain(text), period, period) + late},
		{staked, "slashed", "\nslashed: " + quoted + ` is not a pulse \(a whole number, 0 or more\); ` + t.stake + " tokens forfeited\n"},
		{number && n > 0, "staked", fmt.Sprintf("\nyou are validator ([0-9a-f]{64}) with (%s) tokens staked\ndraw %d seal: (%s)\n",
			plain(text), t.next, cmp.Or(l.seals[t.next], "[0-9a-f]{64}"))},
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

// standings is a pattern of how the round of a terminal may stand: as after each of its proposals, unless some were slashed.
func (l *life) standings(t *transcript) string {
	entries, all := l.drawn(t.next).entries, []string{"proposals 0, tokens 0"}
	if len(entries) == 0 || slices.ContainsFunc(entries, func(e entry) bool { return e.bpm == "slashed" }) {
		return `proposals \d+, tokens \d+(?:, yours ` + t.stake + ` \(\d+\.\d%\))?`
	}
	for i, e := range entries {
		own := ""
		if part, _ := new(big.Rat).SetString(t.stake + "/" + e.last); t.open != nil {
			share, _ := part.Float64()
			own = fmt.Sprintf(`, yours %s \(%.1f%%\)`, t.stake, 100*share)
		}
		all = append(all, fmt.Sprintf("proposals %d, tokens %s%s", i+1, e.last, own))
	}
	return strings.Join(all, "|")
}

// note takes in what a message says, and judges the time of it.
func (l *life) note(t *transcript, kind string, m []string, typed, at moment) (fault string) {
	switch l.count[kind]++; kind {
	case "greeting":
		t.greeted = at.at
	case "none":
		t.next = l.first
	case "staked":
		t.address, t.stake = m[1], m[2]
		l.seal(t.next, m[3])
	case "refused":
		t.tries++
	case "proposed":
		if left, err := time.ParseDuration(m[3]); err == nil { // the round is not full
			text, _ := typed.clean()
			t.open, t.until = &entry{t.address, t.stake, plain(text), m[1], m[2]}, typed.at+left-time.Millisecond // left was rounded
			t.proposals[t.next] = t.open
		}
	case "winner":
		switch d := l.drawn(t.next); {
		case t.next >= len(l.blocks) || 0 < at.kept && at.kept < l.ends[t.next]:
			fault = "it was not in the chain file"
		case 0 < at.drew && at.drew < d.end && !l.moved:
			fault = "its draw was not in the draws file"
		case t.open != nil && at.at < min(t.until, l.asked):
			fault = "the round ended too early"
		}
		t.next, t.open = t.next+1, nil
	case "chain":
		if t.chains++; at.at < t.dialed+time.Duration(t.chains)*broadcastEvery || !t.slow && at.at > t.chainAt+broadcastEvery+lag {
			fault = "too early, or too late"
		}
		t.chainAt = at.at
	case "shutdown":
		if l.killed || at.at < l.asked || t.open != nil || t.next != len(l.blocks) && (t.next != 0 || at.at > t.greeted+2*lag) {
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

// may reports whether a line that was not answered may have been text; any bad line, for "slashed".
func (t *transcript) may(text string) bool {
	return slices.ContainsFunc(t.typed[t.answered:], func(typed moment) bool {
		was, _ := typed.clean()
		_, err := strconv.ParseUint(was, 10, 63)
		return plain(was) == text || text == "slashed" && err != nil
	})
}

// compare holds the draws against what the proposers typed and heard.
func (l *life) compare() {
	owners := map[string]*transcript{}
	for _, t := range l.terminals {
		if t.address != "" && owners[t.address] != nil {
			l.fail(t, "the address of %s once more", owners[t.address].name)
		}
		owners[t.address] = t
	}
	for _, d := range l.records {
		for _, e := range d.entries {
			for i := 0; i < len(l.terminals) && owners[e.address] == nil; i++ { // it was gone before it heard so
				if t := l.terminals[i]; t.address == "" && t.may(e.stake) && t.may(e.bpm) {
					owners[e.address], t.address, t.stake = t, e.address, e.stake
				}
			}
			t := owners[e.address]
			if t == nil {
				l.fail(nil, "block %d: nobody proposed %v", d.Index, e)
				continue
			}
			want, heard, void := entry{}, t.proposals[d.Index], e.bpm == "slashed"
			if heard != nil {
				want = *heard
			} else if t.may(e.bpm) { // it was gone before it heard so
				want = entry{t.address, t.stake, e.bpm, e.first, e.last}
			}
			if void && (t.slashed > 0 || t.may("slashed")) {
				want.bpm = e.bpm
			}
			if e != want || !void && heard != nil && heard == t.open && t.slashed > 0 && t.slashed < min(t.until, l.asked) {
				l.fail(t, "block %d was drawn with %v, it proposed %v, and was slashed at %v", d.Index, e, want, t.slashed)
			}
		}
	}
	for _, t := range l.terminals {
		for index := range t.proposals {
			in := slices.ContainsFunc(l.drawn(index).entries, func(e entry) bool { return e.address == t.address })
			killed := l.killed && index == len(l.blocks) && l.records[index] == nil
			if !in && !killed && t.slashed == 0 && !t.may("slashed") { // if all were slashed, the next round decided this block
				l.fail(t, "its proposal for block %d is not in the draw", index)
			}
		}
	}
}

// judgeConsole judges what the server showed, and that it had no reason to complain.
func (l *life) judgeConsole() {
	for i := l.first; i < len(l.blocks)-1 || i < len(l.blocks) && !l.killed; i++ {
		d := l.drawn(i)
		_, after, seal := strings.Cut(l.console, fmt.Sprintf("\ndraw %d seal: %s\n", i, l.seals[i]))
		_, after, shown := strings.Cut(after, fmt.Sprintf("block %d: BPM %s, %s, proposals %d, stake %s (", i, d.winner.bpm, d.says, len(d.entries), d.winner.stake))
		if _, after, _ = strings.Cut(after, "%), forged by\n  "); !seal || !shown || !strings.HasPrefix(after, d.winner.address) {
			l.fail(nil, "the console does not show how block %d was drawn:\n%s", i, l.console)
			break
		}
	}
	stuck := slices.ContainsFunc(l.terminals, func(t *transcript) bool { return t.stuck })
	for text := range strings.Lines(l.errs) {
		if !(l.count["full"] > 0 && (strings.Contains(text, " the server is full") || strings.Contains(text, " there is room again")) ||
			stuck && strings.Contains(text, " terminals cut off: they did not read") || l.torn && strings.Contains(text, " last line ") ||
			strings.Contains(text, "draws.jsonl: dropping a last line without its end ") ||
			l.moved && strings.Contains(text, "; the draws go on in ") || strings.Contains(text, " is not kept after a second")) {
			l.fail(nil, "on stderr: %q in\n%s", text, l.errs)
			break
		}
	}
}
