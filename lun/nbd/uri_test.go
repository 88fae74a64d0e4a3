package nbd

import "testing"

func TestParseURI(t *testing.T) {
	for s, want := range map[string]URI{
		"nbd://host/disk":                           {"tcp", "host:10809", "disk"},
		"nbd://[::1]:1/":                            {"tcp", "[::1]:1", ""},
		"nbd+unix:///?socket=/run/a.sock":           {"unix", "/run/a.sock", ""},
		"nbd+unix:///a%2Fb%20c?socket=%2Frun%2Fs+t": {"unix", "/run/s t", "a/b c"},
	} {
		if got, err := ParseURI(s); err != nil || got != want || !IsURI(s) {
			t.Errorf("%s: %+v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "nbd://", "nbd:///x", "nbds://host/x", "nbd+unix:///x", "nbd+unix://host/x?socket=/s", "nbd://user@host/x",
		"nbd://host/x?socket=/s", "nbd+unix:///x?socket=/s&tls=1", "nbd://host:99999999/%zz"} {
		if got, err := ParseURI(s); err == nil {
			t.Errorf("%s: %+v", s, got)
		}
	}
}

func FuzzParseURI(f *testing.F) {
	f.Add("nbd+unix:///a%2Fb?socket=%2Frun%2Fs")
	f.Fuzz(func(t *testing.T, s string) {
		if u, err := ParseURI(s); err == nil && (u.Address == "" || len(u.Export) > maxName) {
			t.Errorf("%+v", u)
		}
	})
}
