"""Programs of each kind that look a name up: by glibc, musl, Go, and by themselves."""

import os
import subprocess
from pathlib import Path
from typing import Final

RESOLVERS: Final = ("getent hosts", "getent ahosts", "dig", "nslookup", "musl", "go")

MUSL = """
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
int main(int argc, char **argv)
{
    struct addrinfo hints = {.ai_family = AF_INET}, *found;
    char text[INET_ADDRSTRLEN];
    if (getaddrinfo(argv[1], 0, &hints, &found)) return 1;
    puts(inet_ntop(AF_INET, &((struct sockaddr_in *)found->ai_addr)->sin_addr, text, sizeof text));
}
"""
GO = """
package main
import ("fmt"; "net"; "os")
func main() {
    found, err := net.LookupHost(os.Args[1])
    fmt.Println(found, err)
}
"""


def resolver(name: str, directory: Path) -> list[str]:
    """The command, which takes a name and prints its address; what it needs is built there."""
    match name:
        case "dig":
            return ["dig", "+short", "+tries=1"]
        case "nslookup":
            return ["busybox", "nslookup"]
        case "musl":
            return [_built(directory / "musl.c", MUSL, "musl-gcc", "-static")]
        case "go":
            return [_built(directory / "lookup.go", GO, "go", "build")]
        case _:
            return name.split()


def _built(source: Path, text: str, *compiler: str) -> str:
    program = source.with_suffix("")
    if not program.exists():
        source.write_text(text)
        static = os.environ | {"CGO_ENABLED": "0"}
        subprocess.run([*compiler, "-o", str(program), str(source)], env=static, check=True)
    return str(program)
