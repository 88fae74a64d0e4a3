package mask

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cleave-san/cleave/iscsi"
)

const (
	tgt   iscsi.Name = "iqn.2026-01.test:t"
	alice iscsi.Name = "iqn.2026-01.test:alice"
	bob   iscsi.Name = "iqn.2026-01.test:bob"
)

func TestNothingByDefault(t *testing.T) {
	var m Table
	if v := m.View(tgt, alice); len(v) != 0 {
		t.Errorf("view %v", v)
	}
	if m.Sees(tgt, alice) || m.Known(alice) {
		t.Error("a stranger is known")
	}
}

func TestView(t *testing.T) {
	var m Table
	must(t, m.Set(tgt, alice, Grant{LUN: 7}, Grant{LUN: 1, ReadOnly: true}))
	must(t, m.Set(tgt, Anyone, Grant{LUN: 1}, Grant{LUN: 3, ReadOnly: true}))
	// Her own grant for 1 wins over Anyone's.
	want := []Grant{{1, true}, {3, true}, {7, false}}
	if d := cmp.Diff(want, m.View(tgt, alice)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]Grant{{1, false}, {3, true}}, m.View(tgt, bob)); d != "" {
		t.Error(d)
	}
	must(t, m.Set(tgt, Anyone))
	if m.Sees(tgt, bob) || m.Known(bob) || !m.Known(alice) {
		t.Error("grants for Anyone were withdrawn")
	}
	// A LUN that goes takes its grants with it.
	m.Forget(tgt, 7)
	if d := cmp.Diff([]Grant{{1, true}}, m.View(tgt, alice)); d != "" {
		t.Error(d)
	}
	m.ForgetTarget(tgt)
	if m.Sees(tgt, alice) {
		t.Error("grants outlived the target")
	}
}

func TestSetRefuses(t *testing.T) {
	var m Table
	must(t, m.Set(tgt, alice, Grant{LUN: 1}))
	if m.Set(tgt, alice, Grant{LUN: 2}, Grant{LUN: 2}) == nil || m.Set(tgt, alice, Grant{LUN: MaxLUN + 1}) == nil {
		t.Error("accepted")
	}
	if d := cmp.Diff([]Grant{{LUN: 1}}, m.View(tgt, alice)); d != "" {
		t.Errorf("a refused change changed something: %s", d)
	}
}

func TestCredentials(t *testing.T) {
	var m Table
	secret := []byte("a-secret-of-20-bytes")
	must(t, m.SetCredentials(alice, &Credentials{User: "alice", Secret: secret}))
	secret[0] = 'X' // the table has its own copy
	c, found, guarded := m.Credentials(alice)
	if !found || !guarded || string(c.Secret) != "a-secret-of-20-bytes" {
		t.Errorf("%t %t", found, guarded)
	}
	if _, found, guarded = m.Credentials(bob); found || !guarded {
		t.Error("bob")
	}
	for _, s := range []string{fmt.Sprint(c), fmt.Sprintf("%+v", c), fmt.Sprintf("%#v", c), fmt.Sprintf("%s", c)} { //nolint:staticcheck // how it prints is the question
		if strings.Contains(s, "secret-of") || strings.Contains(s, "0x61") {
			t.Errorf("shows the secret: %s", s)
		}
	}
	must(t, m.SetCredentials(alice, nil))
	if _, found, guarded = m.Credentials(alice); found || guarded {
		t.Error("taken back, and still there")
	}
}

func TestCredentialsRefused(t *testing.T) {
	long := []byte("a-secret-of-20-bytes")
	for name, c := range map[string]Credentials{
		"short":        {User: "u", Secret: []byte("short")},
		"long":         {User: "u", Secret: make([]byte, MaxSecret+1)},
		"no user":      {Secret: long},
		"same secret":  {User: "u", Secret: long, MutualUser: "m", MutualSecret: long},
		"short mutual": {User: "u", Secret: long, MutualUser: "m", MutualSecret: []byte("x")},
		"no mutual":    {User: "u", Secret: long, MutualSecret: []byte("another-secret-here")},
	} {
		var m Table
		err := m.SetCredentials(alice, &c)
		if err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), "a-secret") {
			t.Errorf("%s: error shows the secret: %v", name, err)
		}
		if name == "same secret" && !errors.Is(err, ErrSecret) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// RFC 7143 section 9.2.1: no secret works in both directions, whoever has it.
func TestSecretInBothDirections(t *testing.T) {
	var m Table
	one, two, three := []byte("secret-number-one"), []byte("secret-number-two"), []byte("secret-number-3!!")
	must(t, m.SetCredentials(alice, &Credentials{User: "alice", Secret: one, MutualUser: "disk", MutualSecret: two}))
	for name, c := range map[string]*Credentials{
		"alice's mutual secret as bob's own": {User: "bob", Secret: two},
		"alice's own as bob's mutual secret": {User: "bob", Secret: three, MutualUser: "disk", MutualSecret: one},
	} {
		if err := m.SetCredentials(bob, c); !errors.Is(err, ErrSecret) {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, m.SetCredentials(bob, &Credentials{User: "bob", Secret: three, MutualUser: "disk", MutualSecret: two}))
	must(t, m.SetCredentials(alice, &Credentials{User: "alice", Secret: one})) // its own, anew
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
