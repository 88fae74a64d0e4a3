package iscsi

import (
	"strings"
	"testing"
)

func TestURL(t *testing.T) {
	for _, s := range []string{
		"iscsi://192.0.2.1:3260/iqn.2026-01.org.example:disk/0",
		"iscsi://me@array.example.org:3261/iqn.2026-01.org.example:disk/16383",
		"iscsi://[2001:db8::1]:3260/eui.0011223344556677/1",
	} {
		u, err := ParseURL(s)
		if err != nil || u.String() != s {
			t.Errorf("%s: %v %v", s, u, err)
		}
	}
	if u, err := ParseURL("iscsi://h/iqn.2026-01.org.example:disk/1"); err != nil || u.Portal != "h:3260" {
		t.Errorf("%+v %v", u, err)
	}
	for _, s := range []string{
		"", "http://h/iqn.a/1", "iscsi://", "iscsi://h", "iscsi://h/iqn.a", "iscsi://h/iqn.a/", "iscsi://h/iqn.a/16384",
		"iscsi://h/iqn.a/-1", "iscsi://h/iqn.a/1/2", "iscsi:///iqn.a/1", "iscsi://@h/iqn.a/1", "iscsi://h/disk/1",
		"iscsi://me%topsecret@h/iqn.a/1", "iscsi://me:topsecret@h/iqn.a/1", "iscsi://me:topsecret@h/", "iscsi://a:b:c/iqn.a/1",
		"iscsi://0]0/iqn.a/1", "iscsi://[::1/iqn.a/1", "iscsi://h:0/iqn.a/1", "iscsi://h:65536/iqn.a/1", "iscsi://h?/iqn.a/1",
	} {
		_, err := ParseURL(s)
		if err == nil {
			t.Errorf("%q is taken", s)
		} else if strings.Contains(err.Error(), "topsecret") {
			t.Errorf("the secret is in %q", err)
		}
	}
}

func FuzzURL(f *testing.F) {
	f.Add("iscsi://me@[::1]:3260/iqn.2026-01.org.example:disk/0")
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseURL(s)
		if err != nil {
			return
		}
		if again, err := ParseURL(u.String()); err != nil || again != u {
			t.Fatalf("%q: %+v, then %+v (%v)", s, u, again, err)
		}
	})
}
