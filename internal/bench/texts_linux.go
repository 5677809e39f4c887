package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// What a terminal is told, after the contract. Of most messages only the length
// counts here: the terminals count the bytes they get, to the last one.
const (
	stakeLine    = "100\n"
	proposalLine = "72\n"

	greeting  = "Enter token balance:"
	bpmPrompt = "\nEnter a new BPM:"

	// proposed is in the answer to a proposal that counts, and nowhere else.
	proposed = "; the winner is drawn in "
)

var (
	anyAddress = strings.Repeat("5eed", 16) // as long as that of a validator

	stakeAnswer    = "\nyou are validator " + anyAddress + " with 100 tokens staked\n" + bpmPrompt
	proposalAnswer = "\nblock 1 proposed with BPM 72" + proposed + "2s\n" + bpmPrompt
	winnerText     = "\nwinning validator: " + anyAddress + "\n"
	announcement   = winnerText + bpmPrompt
)

// Block is one entry of the chain.
type Block struct {
	Index     int
	Timestamp string
	BPM       int
	Hash      string
	PrevHash  string
	Validator string
}

// sha256Hex is the SHA-256 of s in lower-case hex.
func sha256Hex(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// newBlock makes the block that follows old, hashed as the contract says.
func newBlock(old Block, bpm int, validator string) Block {
	b := Block{
		Index: old.Index + 1, Timestamp: time.Now().UTC().Format("2006-01-02T15:04:05.000000000Z07:00"),
		BPM: bpm, PrevHash: old.Hash, Validator: validator,
	}
	b.Hash = sha256Hex(fmt.Sprintf("%d\n%s\n%d\n%s\n%s\n", b.Index, b.Timestamp, b.BPM, b.PrevHash, b.Validator))
	return b
}

// newChain makes a chain of length blocks, the first of them a genesis block.
func newChain(length int) []Block {
	chain := []Block{newBlock(Block{Index: -1}, 0, "")}
	for i := 1; i < length; i++ {
		chain = append(chain, newBlock(chain[i-1], 60+i%60, sha256Hex(strconv.Itoa(i))))
	}
	return chain
}

// writeChain writes a chain of length blocks into a new chain file. It returns how many
// bytes a broadcast of it is, with the prompt of a staked terminal.
func writeChain(file string, length int) (broadcast int, err error) {
	var lines []byte
	for _, block := range newChain(length) {
		line, err := json.Marshal(block)
		if err != nil {
			return 0, err
		}
		lines = append(append(lines, line...), '\n')
	}
	// Where the file has a newline after each block, the array has a comma
	// between two.
	return len("\n[") + len(lines) - 1 + len("]\n") + len(bpmPrompt), os.WriteFile(file, lines, 0o600)
}
