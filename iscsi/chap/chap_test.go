package chap

import (
	"errors"
	"strings"
	"testing"
)

// Vectors made with Python's hashlib:
// hashlib.new(a, bytes([0x17]) + b"twelve-bytes" + bytes(range(16))).hexdigest()
func TestVectors(t *testing.T) {
	value := make([]byte, 16)
	for i := range value {
		value[i] = byte(i)
	}
	for a, want := range map[Algorithm]string{
		MD5:    "0x8d707d1e8603dbaa7fd0e6d042863287",
		SHA1:   "0x51ff521fc6c5eb8e11fdea0df39829f440c4e07f",
		SHA256: "0xfa97f3f07e86bfbe1e62a4a76573d175939c496b8d5ad1baf62e5501a4c474b6",
	} {
		c := Challenge{a, 0x17, value}
		got := Encode(c.Answer([]byte("twelve-bytes")))
		if got != want {
			t.Errorf("%v: %s, want %s", a, got, want)
		}
		answer, err := Decode(want)
		if err != nil || !c.Verify([]byte("twelve-bytes"), answer) {
			t.Errorf("%v: right answer refused (%v)", a, err)
		}
		if c.Verify([]byte("twelve-bytez"), answer) || c.Verify([]byte("twelve-bytes"), nil) {
			t.Errorf("%v: wrong answer accepted", a)
		}
	}
}

func TestChoose(t *testing.T) {
	for list, want := range map[string]Algorithm{"5": MD5, "7,6,5": SHA256, "8,6": SHA1, "0x5": MD5, "x,5": MD5} {
		if a, ok := Choose(list); !ok || a != want {
			t.Errorf("%q: %v %t", list, a, ok)
		}
	}
	for _, list := range []string{"", "8", "4", "-5", "261"} {
		if a, ok := Choose(list); ok {
			t.Errorf("%q: %v", list, a)
		}
	}
}

func TestChallengesDiffer(t *testing.T) {
	a, b := NewChallenge(MD5), NewChallenge(MD5)
	if string(a.Value) == string(b.Value) || len(a.Value) != ChallengeLen {
		t.Error("two challenges are the same")
	}
}

func TestDecode(t *testing.T) {
	for in, want := range map[string]string{"0x61": "a", "0X6162": "ab", "0x162": "\x01b", "0bYWI=": "ab", "0BYWI=": "ab"} {
		if got, err := Decode(in); err != nil || string(got) != want {
			t.Errorf("%s: %q %v", in, got, err)
		}
	}
	for _, in := range []string{"", "0", "61", "0xzz", "0b!", "1x61", "0x" + strings.Repeat("00", 1025)} {
		if got, err := Decode(in); !errors.Is(err, ErrValue) {
			t.Errorf("%.20s: %q %v", in, got, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("0x6162", "17")
	f.Fuzz(func(t *testing.T, value, id string) {
		b, err := Decode(value)
		if err == nil && len(b) > 0 {
			again, err := Decode(Encode(b))
			if err != nil || string(again) != string(b) {
				t.Fatalf("%q: %x, then %x %v", value, b, again, err)
			}
		}
		if c, err := ReadChallenge(MD5, id, value); err == nil {
			c.Answer(nil)
		}
	})
}
