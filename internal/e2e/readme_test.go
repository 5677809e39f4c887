//go:build linux

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// findAll returns the submatches of each match of pattern in a file of the repository, joined by "=" and without the
// indentation of samples. There must be a match.
func findAll(t *testing.T, file, pattern string) (found []string) {
	t.Helper()
	text, err := os.ReadFile("../../" + file)
	for _, match := range regexp.MustCompile(pattern).FindAllStringSubmatch(string(text), -1) {
		found = append(found, strings.ReplaceAll(strings.Join(match[1:], "="), "\n    ", "\n"))
	}
	if found == nil {
		t.Fatalf("%s: no match for %s (error %v)", file, pattern, err)
	}
	return found
}

// TestReadmeNames checks that what README.md names exists, and that it lists exactly the settings of the program.
func TestReadmeNames(t *testing.T) {
	settings := slices.Sorted(slices.Values(findAll(t, "internal/settings/settings.go", `"([A-Z_]+)", "([^"]*)"`)))
	for file, pattern := range map[string]string{
		"README.md": "\n\\| `([A-Z_]+)` \\| `(.*?)`",
		".env":      `\n#?([A-Z_]+)=(.*)`,
	} {
		found := slices.Sorted(slices.Values(findAll(t, file, pattern)))
		expect(t, slices.Equal(found, settings), "%s has\n%q, the program has\n%q", file, found, settings)
	}
	for _, target := range findAll(t, "README.md", "`make ([a-z]+)") {
		findAll(t, "Makefile", "\n("+target+"):")
	}
	for _, name := range findAll(t, "README.md", "[`(\"](internal/[^`)\"]+|\\.ci/[a-z]+|[a-z_]+\\.go)[`)\"]") {
		_, err := os.Stat("../../" + name)
		expect(t, err == nil, "README.md: %v", err)
	}
	guide := findAll(t, "README.md", `(?s)\n\| to change(.*?)\n\n.*\n## If you know the tutorial\n\n(.*?)\n\n`)[0]
	for _, name := range regexp.MustCompile("`[a-zA-Z]+`").FindAllString(guide, -1) {
		findAll(t, "main.go", `\b(`+strings.Trim(name, "`")+`)\b`)
	}
}

// TestReadmeCommands runs the commands in README.md on the files of its sample game, which the samples give completely.
func TestReadmeCommands(t *testing.T) {
	if exec.Command("sh", "-c", "timeout 9 sha256sum --version && python3 -V && bc -v").Run() != nil {
		t.Skip("timeout, sha256sum, python3 or bc is missing")
	}
	one := func(pattern string) string { return findAll(t, "README.md", pattern)[0] }
	game, lines := one(`(?s)\$ nc localhost(.*?)\n\*\*`), one(`cat lines\n    ((?: *\w.*\n)+)`)
	fields, hash := strings.Fields(one(`cat fields\n((?: *\w.*\n)+)`)), one(`< fields\n *(\w+)`)
	timestamp, bpm, prevHash, validator := fields[1], fields[2], fields[3], fields[4]
	for _, line := range []string{"draw 1 seal: " + one(`head -n \d+ .*\n *(\w+)`), "draw 1 secret: " + lines[:26],
		"winning validator: " + validator, "  forged by " + validator} {
		expect(t, strings.Contains(game, "\n"+line+"\n"), "README.md: the sample game lacks %s", line)
	}
	dir, program := t.TempDir(), strings.NewReplacer("go run .", binary, "./proofofstake", binary)
	for name, content := range map[string]string{
		"lines": lines,
		"chain.jsonl": fmt.Sprintf(`{"Index":0,"Timestamp":%q,"BPM":0,"Hash":%q,"PrevHash":"","Validator":""}
{"Index":1,"Timestamp":%q,"BPM":%s,"Hash":%q,"PrevHash":%q,"Validator":%q}
`, one(`"Index":0,"Timestamp":"(.*?)"`), prevHash, timestamp, bpm, hash, prevHash, validator),
		"draws.jsonl": fmt.Sprintf(`{"Index":1,"Block":%q,"Lines":["%s"],"Ticket":%s,"NextSeal":%q}
`, hash, strings.ReplaceAll(strings.TrimSpace(lines), "\n", `","`),
			strings.Replace(one(`72: ticket (\d+ of \d+)`), " of ", `,"Total":`, 1), one("draw 2 seal: (.*)")),
	} {
		os.WriteFile(dir+"/"+name, []byte(content), 0o644)
	}
	for _, sample := range findAll(t, "README.md", `(?m)^    \$ ([^n].*\n(?:    [^$\n].*\n)*)`) {
		command, want, _ := strings.Cut(sample, "\n")
		cmd := exec.Command("timeout", "60", "sh", "-c", "exec 2>&1; "+program.Replace(command))
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "CHAIN_FILE=chain.jsonl", "DRAWS_FILE=draws.jsonl")
		got, _ := cmd.Output() // some samples show an error
		want = strings.TrimPrefix(want, "    ")
		expect(t, string(got) == want, "README.md: %s\nprints\n%s, not\n%s", command, got, want)
	}
}
