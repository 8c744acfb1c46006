"""Words that fill the templates: names, places, objects, events, capitals.

Which of them are one token depends on the tokenizer; the tasks find out.
"""

_NAMES = """
Aaron Adam Alan Albert Alex Alice Amanda Amy Andrew Angela Anna Anthony Arthur
Ben Betty Brandon Brian Carl Carol Catherine Charles Charlotte Chris Christine
Claire Crystal Dan Daniel David Dennis Diana Donald Dorothy Edward Elena Eli
Elizabeth Ellen Emily Emma Eric Erin Eva Frank Fred Gary George Grace Graham
Greg Hannah Harry Heather Helen Henry Howard Ian Jack Jacob James Jamie Jane
Jason Jeff Jennifer Jeremy Jesse Jessica Jim Joan Joe John Jonathan Jordan
Joseph Joshua Julia Julie Justin Karen Kate Katie Keith Kelly Kenneth Kevin
Kim Kyle Larry Laura Lauren Leon Leslie Linda Lisa Louis Lucy Luke Margaret
Maria Mark Martha Martin Mary Matt Matthew Max Megan Melissa Michael Michelle
Mike Nancy Nathan Neil Nick Nicole Oliver Patrick Paul Peter Philip Rachel
Ralph Rebecca Richard Robert Roger Ron Rose Russell Ruth Ryan Sam Samuel Sarah
Scott Sean Simon Stephanie Stephen Steve Steven Susan Thomas Tim Tom Tony
Tyler Victoria Vincent Walter William
"""
NAMES = tuple(_NAMES.split())

PLACES = (
    "store",
    "garden",
    "restaurant",
    "school",
    "hospital",
    "office",
    "house",
    "station",
    "park",
    "market",
)

OBJECTS = (
    "ring",
    "book",
    "drink",
    "basketball",
    "computer",
    "necklace",
    "snack",
    "bone",
    "letter",
    "map",
)

EVENTS = (
    "war",
    "siege",
    "campaign",
    "expedition",
    "journey",
    "project",
    "strike",
    "rebellion",
    "drought",
    "dispute",
    "reign",
    "construction",
    "conflict",
    "alliance",
    "tour",
    "study",
)

# Left out: countries with "the", with a disputed or second capital, and those whose
# name stands in their capital's.
CAPITALS = {
    "Afghanistan": "Kabul",
    "Albania": "Tirana",
    "Algeria": "Algiers",
    "Angola": "Luanda",
    "Argentina": "Buenos Aires",
    "Armenia": "Yerevan",
    "Australia": "Canberra",
    "Austria": "Vienna",
    "Azerbaijan": "Baku",
    "Bangladesh": "Dhaka",
    "Belarus": "Minsk",
    "Belgium": "Brussels",
    "Botswana": "Gaborone",
    "Bulgaria": "Sofia",
    "Cambodia": "Phnom Penh",
    "Canada": "Ottawa",
    "China": "Beijing",
    "Colombia": "Bogota",
    "Croatia": "Zagreb",
    "Cuba": "Havana",
    "Cyprus": "Nicosia",
    "Denmark": "Copenhagen",
    "Ecuador": "Quito",
    "Egypt": "Cairo",
    "England": "London",
    "Eritrea": "Asmara",
    "Estonia": "Tallinn",
    "Ethiopia": "Addis Ababa",
    "Finland": "Helsinki",
    "France": "Paris",
    "Georgia": "Tbilisi",
    "Germany": "Berlin",
    "Ghana": "Accra",
    "Greece": "Athens",
    "Hungary": "Budapest",
    "Iceland": "Reykjavik",
    "India": "New Delhi",
    "Indonesia": "Jakarta",
    "Iran": "Tehran",
    "Iraq": "Baghdad",
    "Ireland": "Dublin",
    "Italy": "Rome",
    "Jamaica": "Kingston",
    "Japan": "Tokyo",
    "Jordan": "Amman",
    "Kenya": "Nairobi",
    "Latvia": "Riga",
    "Lebanon": "Beirut",
    "Libya": "Tripoli",
    "Lithuania": "Vilnius",
    "Mali": "Bamako",
    "Malta": "Valletta",
    "Mongolia": "Ulaanbaatar",
    "Morocco": "Rabat",
    "Nepal": "Kathmandu",
    "New Zealand": "Wellington",
    "North Korea": "Pyongyang",
    "Norway": "Oslo",
    "Oman": "Muscat",
    "Pakistan": "Islamabad",
    "Peru": "Lima",
    "Poland": "Warsaw",
    "Portugal": "Lisbon",
    "Qatar": "Doha",
    "Romania": "Bucharest",
    "Russia": "Moscow",
    "Rwanda": "Kigali",
    "Saudi Arabia": "Riyadh",
    "Scotland": "Edinburgh",
    "Senegal": "Dakar",
    "Serbia": "Belgrade",
    "Slovakia": "Bratislava",
    "Slovenia": "Ljubljana",
    "Somalia": "Mogadishu",
    "South Korea": "Seoul",
    "Spain": "Madrid",
    "Sudan": "Khartoum",
    "Sweden": "Stockholm",
    "Syria": "Damascus",
    "Taiwan": "Taipei",
    "Thailand": "Bangkok",
    "Turkey": "Ankara",
    "Uganda": "Kampala",
    "Ukraine": "Kyiv",
    "Uruguay": "Montevideo",
    "Venezuela": "Caracas",
    "Vietnam": "Hanoi",
    "Wales": "Cardiff",
    "Zambia": "Lusaka",
    "Zimbabwe": "Harare",
}
