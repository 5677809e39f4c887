package draw

import (
	"fmt"
	"math"
	"math/big"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"proofofstake/internal/console"
)

func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if got, want := fmt.Sprint(got), fmt.Sprint(want); got != want {
		t.Errorf("%s: got\n%s\nwant\n%s", what, got, want)
	}
}

const (
	a199   = "a199cdea8894ecbe12c65b56fa395a64976f092c825e44bb5ba3a220c73793fa"
	c700   = "c700655083fd1a5a42a460566e477569e4a9273b9c9aa44f081a4b50fb600e71"
	block0 = "9fa00adf97e0d81be3e68f14ea88337abd6eaddb6c7016a873733aa5e48ea371"
	secret = "KBZ3ZK5EUBYQZ2WUTMH3RYMSGE"
)

// Two draws, byte by byte. The second one has a redraw. Each new draw has a new secret.
func TestExamples(t *testing.T) {
	d := New(block0, None)
	same(t, "equal secrets", d.Secret() == New(block0, None).Secret(), false)
	d.secret = secret
	same(t, "tickets", fmt.Sprint(d.Add(Entry{Name: a199, Tickets: 100, Note: "72"})), "1 100")
	same(t, "tickets", fmt.Sprint(d.Add(Entry{Name: c700, Tickets: 25, Note: "68"})), "101 125")
	o := d.Outcome()
	same(t, "lines", o.Lines, secret+"\n"+block0+"\nnone\n"+a199+" 100 72\n"+c700+" 25 68\n")
	const seal = "4a8377c366785157a146aef739d0258b68b4f437842478e6a465667832b3aa21"
	same(t, "seal", d.SealLine(1), "draw 1 seal: "+seal+"\n")
	same(t, "hash", o.Hash, "69dbafb84453f3705be180841b7513f7880f45b7b8f4b0b497a65553faab9d52")
	same(t, "outcome", fmt.Sprint(o, ", winner ", o.Winner), "ticket 28 of 125, winner 0")
	same(t, "record", string(NewRecord(1, "b1", o, d)), `{"Index":1,"Block":"b1","Lines":["`+secret+`","`+block0+
		`","none","`+a199+` 100 72","`+c700+` 25 68"],"Ticket":28,"Total":125,"NextSeal":"`+seal+`"}`)

	d.secret, d.PrevDraw = strings.Repeat("A", 26), o.Hash
	d.Slash(0)
	same(t, "eligible", fmt.Sprint(d.Eligible()), "1 25")
	o = d.Outcome()
	same(t, "seal", d.Seal(), "dde06fe11761c0e395edaada776dff52eda8c940be1f3f1a65a3c5a3adf2f991")
	same(t, "hash", o.Hash, "c293ef931f417eb71ab1f3400379a3ec781b8383bcfb098b0d387a67ef79222f")
	same(t, "hash of it", hash(o.Hash+"\n"), "c6e6e18a465801817682b70e2e7f22263a4df77c9c5c70be1337f427bccefdd0")
	same(t, "outcome", fmt.Sprint(o, ", winner ", o.Winner),
		"ticket 62 of 125 was slashed; redraw: ticket 3 of 25, winner 1")
	d.Slash(1)
	same(t, "winner if all are slashed", d.Outcome().Winner, -1)
}

// Parse accepts what Lines returns, and nothing else.
func TestParse(t *testing.T) {
	good := []string{secret, a199, None, "alice 9223372036854775807 72", "bob 9223372036854775807 slashed", "carol 1 0"}
	d, err := Parse(good)
	same(t, "error", err, nil)
	same(t, "lines", d.Lines(), strings.Join(good, "\n")+"\n")
	same(t, "entries", d.Entries, "[{alice 9223372036854775807 72} {bob 9223372036854775807 slashed} {carol 1 0}]")
	same(t, "eligible", fmt.Sprint(d.Eligible()), "2 9223372036854775808")
	for _, bad := range []string{"", "alice 5", "alice 5 ", "alice  5 72", " 5 72", "alice 5 72 1", "alice 0 72",
		"alice -5 72", "alice +5 72", "alice 05 72", "alice 1_0 72", "alice 9223372036854775808 72", "al\nice 5 72",
		"alice 5 72\r", "al\tice 5 72", "al\u202ece 5 72", "alice 5 \x7f", "alice 5 " + strings.Repeat("7", 1<<20) + "\n"} {
		_, err := Parse([]string{secret, a199, c700, "bob 1 1", bad})
		same(t, "error", err, console.Quote(bad, 100)+" is not an entry (address, stake, BPM)")
	}
	for _, bad := range [][]string{nil, {""}, {secret[1:], a199, None}, {secret + " ", a199, None}, {secret + "\nbob 1 1"},
		{secret}, {secret, a199}, {secret, None, a199}, {secret, a199, "None"}, {secret, a199[1:], None},
		{secret, a199, c700 + "0"}, {secret, strings.ToUpper(a199), None}} {
		if _, err := Parse(bad); err == nil || strings.Contains(err.Error(), "entry") {
			t.Errorf("Parse(%q) returns the error %v", bad, err)
		}
	}
}

// TestManyEntries has as many entries as a round, with tickets beyond 64 bits. Each entry holds its own. Slashed ones
// cost no more than others.
func TestManyEntries(t *testing.T) {
	d := New(block0, None)
	for i := range 20_000 {
		d.Add(Entry{Name: fmt.Sprint(a199, i), Tickets: math.MaxInt64, Note: "1"})
		d.Slash(i)
	}
	first, last := d.Add(Entry{Name: "b", Tickets: math.MaxInt64, Note: "1"})
	same(t, "tickets", fmt.Sprint(first, last), "184467440737095516140001 184476664109132370915807")
	holders := fmt.Sprint(d.holder(first, true), d.holder(last, true), d.holder(big.NewInt(1), false))
	before := d.holder(first.Sub(first, big.NewInt(1)), true)
	same(t, "holders", fmt.Sprint(before, " ", holders), "19999 20000 20000 20000")
	same(t, "few allocations", testing.AllocsPerRun(1, func() { d.Outcome() }) < 100, true)
	record := string(NewRecord(1, c700, d.Outcome(), d)) + "\n"
	same(t, "verify", verify(record, []block{{hash: block0}, {c700, "b", "1"}})[:6], "1 draw")
}

// newRound returns a round of a game: its secret, its kind and its entries, with new names. The kind is '.' if the draw
// was recorded and announced, 'r' if also the server was restarted after it, 'x' if a crash came between the draw and
// its block, and '-' if there was no draws file.
func newRound(i int, kind rune) string {
	return fmt.Sprintf("SECRET%020d,%c,a%[1]d 100 70,f%[1]d 25 71,c%[1]d 50 slashed,d%[1]d 7 73\n", i, kind)
}

// newGame returns a game of rounds of these kinds.
func newGame(kinds string) (game string) {
	for i, kind := range kinds {
		game += newRound(i, kind)
	}
	return game
}

// files are the lines of a draws file, how the last seal is published, and a chain from the genesis block on.
type files struct {
	records []string
	seal    string
	chain   []block
}

type block struct{ hash, name, note string }

// play returns the files of a game. It computes everything that follows from the secrets and the entries.
func play(game string) files {
	f, prevDraw, rounds := files{chain: []block{{hash: block0}}}, None, strings.Split(game, "\n")
	for i, round := range rounds[:len(rounds)-1] {
		index, prevBlock, fields := len(f.chain), f.chain[len(f.chain)-1].hash, strings.Split(round, ",")
		d, _ := Parse(append([]string{fields[0], prevBlock, prevDraw}, fields[2:]...))
		o := d.Outcome()
		won := d.Entries[o.Winner]
		b := block{hash(prevBlock + won.Name + won.Note), won.Name, won.Note}
		next := &Draw{PrevBlock: b.hash, PrevDraw: o.Hash, secret: "a secret that is lost"}
		if fields[1] == "." {
			next.secret, _, _ = strings.Cut(rounds[i+1], ",")
		}
		if fields[1] != "-" {
			f.records = append(f.records, string(NewRecord(index, b.hash, o, next))+"\n")
			f.seal, prevDraw = d.SealLine(index), o.Hash
		}
		if fields[1] != "x" {
			f.chain = append(f.chain, b)
		}
	}
	return f
}

// verify returns the summary of a draws file, or its first error.
func verify(draws string, chain []block) string {
	r := NewRecords(strings.NewReader(draws))
	for i, b := range chain {
		r.CheckBlock(i, b.hash, b.name, b.note)
	}
	if err := r.CheckEnd(); err != nil {
		return err.Error()
	}
	return r.Summary()
}

// TestRecords verifies files that are as a server leaves them, and files in which lines are missing, moved or edited.
func TestRecords(t *testing.T) {
	for _, c := range []struct {
		kinds, lines string // of the game, and of the draws file, whose first line is a
		lost         int    // blocks at the end of the chain
		old, new     string // an edit of the draws file
		want         string // how the summary or the error begins
	}{
		{"....", "", 0, "", "", "0 draws; 4 blocks without a draw record\n"},
		{"....", "ab", 0, "", "", "2 draws; 2 blocks without a draw record\n"},
		{"....", "cd", 0, "", "", "2 draws; 2 blocks without a draw record; the file continues from draw\n  "},
		{"....", "acd", 0, "", "", "line 2: it does not name the draw before it"},
		{"....", "abcd", 1, "", "",
			"3 draws; 1 draw not announced (line 4)\nif you noted this seal, no block or draw before draw 4 "},
		{"....", "abcd", 2, "", "", "line 4: its block is not in the chain"},
		{"x...", "abcd", 0, "", "", "3 draws; 1 draw not announced (line 1); 1 new seal, as after a restart\n"},
		{".x--", "ab", 0, "", "", "1 draw; 2 blocks without a draw record; 1 draw not announced (line 2)\n"},
		{"..xx", "abcd", 0, "", "", "2 draws; 2 draws not announced (line 3, line 4); 1 new seal, as after a restart\n"},
		{".rr-.", "abcd", 0, "", "", "4 draws; 1 block without a draw record; 1 new seal, as after a restart\n"},
		{"..", "ab", 0, `"NextSeal":"\w+`, `"NextSeal":"` + a199, "2 draws; 1 new seal, as after a restart\n"},
		{"..", "ab", 0, `"NextSeal":"\w`, `"NextSeal":"`, "line 1: its Index is below 1, or its Block or NextSeal"},
		{"..", "ab", 0, `"Block":"\w`, `"Block":"`, "line 1: its Index is below 1, or its Block or NextSeal"},
		{"..", "ab", 0, `"Index":1`, `"Index":0`, "line 1: its Index is below 1, or its Block or NextSeal"},
		{"..", "ab", 0, `"Index":1`, `"Index":2`, "line 1: it does not name the block before it, block 1"},
		{"..", "ab", 0, `"Index":2`, `"Index":1`, "line 2: out of order: it follows the record of block 1"},
		{".x.", "abc", 0, `(?s)(.*)"Index":2`, `$1"Index":1`, "line 3: out of order: it follows the record of block 2"},
		{"..", "ab", 0, `"Block":"\w+`, `"Block":"` + a199, "line 1: it does not match block 1 of the chain"},
		{"x.", "ab", 0, `"Block":"\w+`, `"Block":"<1>`, "line 1: it does not match block 1 of the chain"},
		{"..", "ab", 0, `"Ticket":`, `"Ticket":1`, "line 1: its lines give ticket "},
		{"..", "ab", 0, `"Total":`, `"Total":1`, "line 1: its lines give ticket "},
		{"..", "ab", 0, `f0 25`, `a0 25`, "line 1: \"a0\" has two entries"},
		{"..", "ab", 0, `"a0.*?]`, `"a0 100 slashed"]`, "line 1: every entry was slashed"},
		{"..", "ab", 0, `"Index"`, `"index"`, "line 1: not canonical JSON"},
	} {
		f, draws := play(newGame(c.kinds)), ""
		for _, letter := range c.lines {
			draws += f.records[letter-'a']
		}
		edited := strings.Replace(c.new, "<1>", f.chain[len(f.chain)-1].hash, 1)
		draws = regexp.MustCompile(c.old).ReplaceAllString(draws, edited)
		got := verify(draws, f.chain[:len(f.chain)-c.lost])
		same(t, fmt.Sprint(c), got[:min(len(got), len(c.want))], c.want)
	}
	f := play(newGame("."))
	f.chain[1].note = "1" // another BPM
	same(t, "error", verify(f.records[0], f.chain), "line 1: it does not match block 1 of the chain (hash, winner or BPM)")
}

// TestRewrites rewrites a game and computes everything that follows, as an adversary can who has the code and both
// files. Verification never ends on the last genuine seal, even if only the first records, or only the records or the
// chain are rewritten.
func TestRewrites(t *testing.T) {
	const kinds = "...x..r-....."
	game := newGame(kinds)
	genuine := play(game)
	end := "if you noted this seal, no block or draw before draw 12 has changed since:\n" + genuine.seal
	same(t, "the genuine game", verify(strings.Join(genuine.records, ""), genuine.chain), "11 draws; "+
		"1 block without a draw record; 1 draw not announced (line 4); 1 new seal, as after a restart\n"+end)
	const winner, loser = "a4 100 70", "f4 25 71" // of round 4
	round := func(i int) string { return newRound(i, rune(kinds[i])) }
	mined := game
	for i := 4; i < len(kinds); i++ { // change a BPM until the same entry wins, so that the chain stays as it was
		before := mined
		for bpm := 0; bpm == 0 || play(mined).chain[i] != genuine.chain[i] && bpm < 1000; bpm++ {
			mined = strings.Replace(before, fmt.Sprintf("d%d 7 73", i), fmt.Sprintf("d%d 7 %d", i, bpm), 1)
		}
	}
	before := func(draws string, chain []block) string { // the lines of all draws, and the blocks before the last one
		return fmt.Sprint(regexp.MustCompile(`"Lines":.*?]`).FindAllString(draws, -1), chain[:min(12, len(chain))])
	}
	for what, edit := range map[string][2]string{
		"a loser is removed":               {"," + loser, ""},
		"the winner is removed":            {winner + ",", ""},
		"an entry is added":                {loser, loser + ",m 9 1"},
		"a stake is cut":                   {loser, "f4 24 71"},
		"the BPMs are mined":               {game, mined},
		"the BPM of a loser is changed":    {loser, "f4 25 1"},
		"the BPM of the winner is changed": {winner, "a4 100 1"},
		"a slashed one is not":             {"c4 50 slashed", "c4 50 72"},
		"the secret is another one":        {"00004,", "XXXXX,"},
		"a draw becomes unannounced":       {round(4), newRound(4, 'x')},
		"a draw is not recorded":           {round(4), newRound(4, '-')},
		"a draw is recorded":               {round(7), newRound(7, '.')},
		"an unannounced draw is announced": {round(3), newRound(3, '.')},
		"an unannounced draw is changed":   {"f3 25 71", "f3 25 1"},
		"an unannounced draw is removed":   {round(3), ""},
		"a block without record is added":  {round(4), newRound(13, '-') + round(4)},
		"foreign draws stand in front":     {round(0), newRound(13, '.') + newRound(14, '.') + round(0)},
		"the first draw is removed":        {round(0), ""},
		"a draw is removed":                {round(4), ""},
		"the last draw is removed":         {round(12), ""},
		"two draws are swapped":            {round(4) + round(5), round(5) + round(4)},
	} {
		f := play(strings.Replace(game, edit[0], edit[1], 1))
		same(t, what+": nothing rewritten", slices.Equal(f.records, genuine.records), false)
		for i := range f.records {
			draws := strings.Join(f.records[:i+1], "") + strings.Join(genuine.records[min(i+1, len(genuine.records)):], "")
			for _, chain := range [][]block{genuine.chain, f.chain} {
				isGenuine := before(draws, chain) == before(strings.Join(genuine.records, ""), genuine.chain)
				if got := verify(draws, chain); strings.HasSuffix(got, end) && !isGenuine {
					t.Errorf("%s, up to line %d: verify says\n%s", what, i+1, got)
				}
			}
		}
	}
}

// TestFairness counts the announced draws of a game, and the entries that could win them.
func TestFairness(t *testing.T) {
	dir := t.TempDir() + "/"
	os.WriteFile(dir+"other", []byte("another\nchain\nof\nblocks\n"), 0o644)
	for _, c := range [][3]string{ // rounds of the game, the chain file, how the output or the error begins
		{"x..xx.x", "chain", "3 rounds, 9 validators. "},
		{"..x", "none", "3 rounds, "},
		{"..x", "other", "3 rounds, "},
		{".x--.", "chain", "2 rounds, "},
		{".x-.", "none", "2 rounds, "},
		{".--.--.", "chain", "3 rounds, "},
		{"", "chain", dir + "draws: no draws yet"},
		{"..", "chain", `2 rounds, 6 validators. Bar (=): wins. Mark (|): expected wins.

validator     rounds  expected    wins      z
a0                 1       0.8       1   +0.6  ======================|=======
a1                 1       0.8       1   +0.6  ======================|=======
f0                 1       0.2       0   -0.5       |
`},
	} {
		f := play(newGame(c[0]))
		os.WriteFile(dir+"draws", []byte(strings.Join(f.records, "")), 0o644)
		os.WriteFile(dir+"chain", []byte(strings.ReplaceAll(fmt.Sprintln(f.chain), "} {", "}\n{")), 0o644)
		var got strings.Builder
		if err := Fairness(&got, dir+"draws", dir+c[1]); err != nil {
			got.WriteString(err.Error())
		}
		same(t, c[0], got.String()[:min(got.Len(), len(c[2]))], c[2])
	}
}

// TestTable lists 20 names. The others, taken together, neither shrink the bars of the 20 nor get a z that is
// exaggerated, or too small because only one of them wins a round.
func TestTable(t *testing.T) {
	equal := make([]tally, 30)
	for i := range equal {
		equal[i] = tally{fmt.Sprint("v", i), 1, 45, i % 4, 1.5, 1.45}
	}
	const legend = `z: wins minus expected wins, in standard deviations. In a fair lottery with many
rounds, about 1 validator in 22 is beyond 2 (+ or -), and 1 in 370 beyond 3.
`
	lines := strings.Split(table(45, equal), "\n")
	same(t, "equal stakes", strings.Join(append(lines[3:5], lines[22:]...), "\n"),
		`v0                45       1.5       0   -1.2                 |
v1                45       1.5       1   -0.4  ==========     |
v19               45       1.5       3   +1.2  ===============|==============
10 others        450      15.0      13   -0.6  =============  |

The bar of the others shows their average.
`+legend+"Too few rounds to tell about one validator: it takes about 80 more.\n")
	one := []tally{{strings.Repeat("x", 64), 1, 1e6, 1e6, 1e6, 0}}
	_, got, _ := strings.Cut(table(1e6, one), "z\n")
	same(t, "no rival", got, "xxxxxxxxxxxx 1000000 1000000.0 1000000   +0.0  ==============================|\n\n"+
		legend+"Nothing to tell: no validator had a rival.\n")
	equal[29].variance = 4
	same(t, "enough rounds", strings.HasSuffix(table(45, equal), "\n"+legend), true)
}
